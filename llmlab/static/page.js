// The live page: one stream of numbers, shown as text nodes. Nothing that comes over the wire becomes HTML.
"use strict";

const POINTS = 120;
const seen = { rows: [], latency: [] };
const at = (id) => document.getElementById(id);
let key = "";

const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "";
}

function numbers(now) {
  const broken = Object.entries(now.circuit_breaker).filter(([, state]) => state !== "closed");
  return [
    ["rows/s", number(now.rows_per_s, 1)],
    ["output tokens/s", number(now.output_tokens_per_s, 0)],
    ["in flight" + (now.concurrency ? ` of ${now.concurrency}` : ""), number(now.in_flight)],
    ["in line", number(now.queue_size)],
    ["latency p50, ms", number(now.latency_ms.p50)],
    ["latency p95, ms", number(now.latency_ms.p95)],
    ["answered", number(now.requests.ok ?? 0)],
    ["failed", number(total(now.errors))],
    ["retries", number(total(now.retries))],
    ["tokens", number(now.input_tokens + now.output_tokens)],
    ["cost, USD", number(now.cost_usd, 4)],
    ["breaker", broken.length ? broken.map(([target, state]) => `${target} ${state}`).join(", ") : "closed"],
  ];
}

function cell([name, value]) {
  const box = document.createElement("div"), big = document.createElement("b"), small = document.createElement("span");
  big.textContent = value;
  small.textContent = name;
  box.append(big, small);
  return box;
}

function draw(id, value) {
  const points = seen[id];
  points.push(value ?? 0);
  if (points.length > POINTS) points.shift();
  const top = Math.max(...points, 1e-9);
  const place = (y, n) => `${(n * 600) / (POINTS - 1)},${78 - (y / top) * 74}`;
  at(id).querySelector("polyline").setAttribute("points", points.map(place).join(" "));
}

function error(each) {
  const item = document.createElement("li");
  item.textContent = `${new Date(each.at * 1000).toLocaleTimeString()} ${each.error_type}: ${each.message}`;
  return item;
}

function show(now) {
  const open = Object.values(now.circuit_breaker).includes("open");
  say(open ? "upstream is down" : "serving", open);
  at("numbers").replaceChildren(...numbers(now).map(cell));
  draw("rows", now.rows_per_s);
  draw("latency", now.latency_ms.p95);
  at("errors").replaceChildren(...now.last_errors.slice().reverse().map(error));
}

async function follow() {
  const answer = await fetch("v1/metrics/stream", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) {
    at("ask").hidden = false;
    say("needs a key", true);
    return false;
  }
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  at("ask").hidden = true;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return true;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    const last = events.filter((text) => text.startsWith("data: ")).pop();
    if (last) show(JSON.parse(last.slice(6)));
  }
}

async function run() {
  for (;;) {
    try {
      if (!(await follow())) return;
    } catch {
      // said below, and tried again
    }
    say("no connection, trying again", true);
    await new Promise((then) => setTimeout(then, 2000));
  }
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  run();
});
run();
