// The live page: one stream of figures, shown as text nodes. Nothing that comes over the wire becomes HTML.
"use strict";

const POINTS = 120;
const SVG = "http://www.w3.org/2000/svg";
const seen = { rows: [], p50: [], p95: [] };
const at = (id) => document.getElementById(id);
let key = "";

const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

function element(tag, text, name) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function say(text, name = "") {
  at("state").textContent = text;
  at("state").className = name;
}

function tiles(id, pairs) {
  at(id).replaceChildren(...pairs.map(([name, value]) => {
    const box = document.createElement("div");
    box.append(element("b", value), element("span", name));
    return box;
  }));
}

function remember(name, value) {
  seen[name].push(value ?? 0);
  if (seen[name].length > POINTS) seen[name].shift();
}

function draw(id, lines, unit) {
  const top = Math.max(...lines.flat(), 1e-9);
  const x = (n, line) => ((POINTS - line.length + n) * 600) / (POINTS - 1);
  const places = lines.map((line) => line.map((y, n) => `${x(n, line)},${98 - (y / top) * 92}`));
  const shapes = places.map((place, n) => {
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", place.join(" "));
    line.setAttribute("class", n ? "second" : "first");
    return line;
  });
  const area = document.createElementNS(SVG, "polygon");
  area.setAttribute("points", [`${x(0, lines[0])},98`, ...places[0], "600,98"].join(" "));
  at(id).replaceChildren(area, ...shapes);
  at(`${id}-top`).textContent = top > 1e-9 ? `highest ${number(top, 1)} ${unit}` : "";
}

function target([name, state]) {
  const item = document.createElement("li");
  item.append(element("span", `breaker ${state.replace("_", " ")}`, state), element("span", name));
  return item;
}

function error(each) {
  const item = document.createElement("li");
  const time = new Date(each.at * 1000).toLocaleTimeString();
  item.append(element("time", time), element("span", each.error_type, "kind"), element("span", each.message));
  return item;
}

function show(now) {
  const states = Object.values(now.circuit_breaker);
  const down = states.length && states.every((state) => state === "open");
  say(down ? "upstream is down" : "serving", down ? "bad" : "good");
  at("figures").hidden = false;
  tiles("now", [
    ["prompts/s", number(now.rows_per_s, 1)],
    ["output tokens/s", number(now.output_tokens_per_s)],
    ["in flight" + (now.concurrency ? ` of ${number(now.concurrency)}` : ""), number(now.in_flight)],
    ["in line", number(now.queue_size)],
    ["clients wait for", number(now.pending)],
    ["left of long jobs", number(now.job_prompts)],
  ]);
  tiles("totals", [
    ["answered", number(now.requests.ok ?? 0)],
    ["failed", number(total(now.errors))],
    ["requests repeated", number(total(now.retries))],
    ["tokens in", number(now.input_tokens)],
    ["tokens out", number(now.output_tokens)],
    ["USD", number(now.cost_usd, 4)],
  ]);
  remember("rows", now.rows_per_s);
  remember("p50", now.latency_ms.p50);
  remember("p95", now.latency_ms.p95);
  draw("rows", [seen.rows], "prompts/s");
  draw("latency", [seen.p50, seen.p95], "ms");
  at("rows-now").textContent = number(now.rows_per_s, 1);
  const { p50, p95, p99 } = now.latency_ms;
  at("latency-now").replaceChildren(
    element("span", `p50 ${number(p50)}`, "first"), " · ", element("span", `p95 ${number(p95)}`, "second"), ` · p99 ${number(p99)}`,
  );
  at("targets").replaceChildren(...Object.entries(now.circuit_breaker).map(target));
  if (!states.length) at("targets").append(element("li", "nothing was asked so far", "none"));
  at("errors").replaceChildren(...now.last_errors.slice().reverse().map(error));
  if (!now.last_errors.length) at("errors").append(element("li", "none", "none"));
}

async function follow() {
  const answer = await fetch("v1/metrics/stream", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) {
    at("ask").hidden = false;
    say(key ? "that key is not valid" : "needs a key", "bad");
    at("key").focus();
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
    say("no connection, trying again", "bad");
    await new Promise((then) => setTimeout(then, 2000));
  }
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  run();
});
run();
