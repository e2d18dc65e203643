// The knobs and curves of a tuning. All that is shown is set as text; no HTML comes from the kernel.
//
// The latest look is kept with the model, not with a view. Knobs are numbered custom messages, as the board's are: a
// kernel that is busy with a cell may hear them late, so nothing here waits for it.

const UNHEARD = "The kernel hears this when the cell is over.";
const PATIENCE = 2000; // milliseconds after which a message counts as unheard
const HELD = 1500; // milliseconds for which a knob that was turned does not follow the kernel
const AXIS = "over requests in flight, measured; green: recommended, grey: the knee's interval, red: what is wanted, dashed grey: the settings before";
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 260, HEIGHT = 150, LEFT = 34, RIGHT = 6, TOP = 6, BOTTOM = 18;

const stores = new Map();

function storeOf(model) {
  const id = model.get("uid");
  let store = stores.get(id);
  if (store) return store;
  store = { look: model.get("look"), views: new Set(), sent: 0, sentAt: 0, heard: 0 };
  store.draw = () => store.views.forEach((draw) => draw());
  stores.set(id, store);
  model.on("msg:custom", (message) => {
    if (message.kind !== "look") return;
    store.look = message.look;
    store.heard = message.heard;
    store.draw();
  });
  return store;
}

function tell(model, message) {
  const store = storeOf(model);
  store.sent = Math.max(Date.now(), store.sent + 1); // numbers of a reloaded page must not be those of the page before
  store.sentAt = Date.now();
  model.send({ ...message, number: store.sent });
  setTimeout(store.draw, PATIENCE);
}

const isUnheard = (store) => store.heard < store.sent && Date.now() - store.sentAt >= PATIENCE;

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  if (parent) parent.append(made);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const short = (value) => {
  if (value === 0) return "0";
  if (value >= 10000) return `${(value / 1000).toFixed(0)}k`;
  return value >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(2)));
};

// -- knobs ---------------------------------------------------------------------------------------------------

const RPM = [null, 30, 60, 120, 300, 600, 1200, 1800, 2400, 3000, 6000, 12000, 30000, 60000];
const SLO = [null, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 90, 120];
const MOST = [8, 16, 32, 64, 128, 256, 512, 1024];
const ELASTICITY = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
const ATTEMPTS = Array.from({ length: 12 }, (_, i) => i + 1);

// What a slider stands for, by its name: its stops, how a value is said, and whether it is told while it is dragged.
const SLIDERS = [
  { name: "elasticity", label: "elasticity wanted", stops: ELASTICITY, say: (value) => `${value} %/%`, atOnce: true,
    title: "1% more in flight is to buy at least so many percent more throughput" },
  { name: "slo", label: "SLO", stops: SLO, say: (value) => (value === null ? "none" : `${value} s`), atOnce: true,
    title: "Seconds that a good answer may take" },
  { name: "most", label: "concurrency tried up to", stops: MOST, say: String,
    title: "Greatest number of requests in flight that is tried" },
  { name: "rpm", label: "rpm", stops: RPM, say: (value) => (value === null ? "no limit" : value.toLocaleString("en")),
    title: "Requests per minute at most" },
  { name: "attempts", label: "retry attempts", stops: ATTEMPTS, say: String,
    title: "Attempts at most that end in a failure; 1: no retries" },
];

function knob(parent, label, title) {
  const root = element("label", "llmlab-knob", parent);
  root.title = title;
  const head = element("span", "llmlab-knob-head", root);
  setText(element("span", "", head), label);
  return { root, value: element("span", "llmlab-knob-value", head) };
}

function withStop(stops, value) {
  if (value === undefined || stops.includes(value)) return stops;
  return [...stops, value].sort((a, b) => (a === null ? -1 : b === null ? 1 : a - b));
}

function makeSlider(parent, model, { name, label, stops, say, atOnce, title }) {
  const { root, value } = knob(parent, label, title);
  const input = element("input", `llmlab-${name}`, root);
  input.type = "range";
  input.min = 0;
  input.dataset.lmSuppressShortcuts = "true";
  let held = 0, shown = stops;
  const now = () => shown[Number(input.value)];
  const send = () => tell(model, { kind: "set", name, value: now() });
  input.oninput = () => {
    held = Date.now() + HELD;
    setText(value, say(now()));
    if (atOnce) send();
  };
  if (!atOnce) input.onchange = send;
  return (wanted, usable) => {
    root.hidden = !usable;
    if (!usable || Date.now() < held) return;
    shown = withStop(stops, wanted);
    input.max = shown.length - 1;
    input.value = shown.indexOf(wanted);
    setText(value, say(wanted));
  };
}

function makeSelect(parent, model, name, label, title) {
  const { root } = knob(parent, label, title);
  const select = element("select", `llmlab-${name}`, root);
  select.dataset.lmSuppressShortcuts = "true";
  let held = 0, listed = "";
  select.onchange = () => {
    held = Date.now() + HELD;
    tell(model, { kind: "set", name, value: select.value });
  };
  return (options, wanted, usable) => {
    root.hidden = !usable;
    const list = JSON.stringify(options);
    if (list !== listed) {
      listed = list;
      select.replaceChildren(...options.map(([value, text]) => {
        const option = element("option", "");
        option.value = value;
        option.textContent = text;
        return option;
      }));
    }
    if (Date.now() >= held) select.value = wanted;
  };
}

// -- curves --------------------------------------------------------------------------------------------------

function shape(tag, className, parent, attributes) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

function ticks(top) {
  const step = 10 ** Math.floor(Math.log10(top / 2));
  const by = [1, 2, 5, 10].map((factor) => factor * step).find((each) => top / each <= 5) ?? 10 * step;
  return Array.from({ length: Math.floor(top / by + 1e-9) + 1 }, (_, i) => i * by);
}

function label(svg, text, x, y, anchor) {
  const made = shape("text", "", svg, { x, y, "text-anchor": anchor });
  made.textContent = text;
}

// Draws points over the requests in flight (logarithmic). `what` says which value, and what else belongs into it.
function drawChart(svg, what, look, span) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const known = (points) => points.filter((point) => point.n > 0 && what.of(point) !== null);
  const points = known(look.points), before = known(look.before);
  const values = [...points, ...before].map(what.of);
  const greatest = Math.max(0, ...values, what.limit ?? 0);
  const top = what.top ?? (greatest > 0 ? 1.08 * greatest : 1);
  const x = (n) => LEFT + ((WIDTH - LEFT - RIGHT) * Math.log(n / span[0])) / Math.log(span[1] / span[0]);
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * Math.min(value, top)) / top;
  const base = y(0);
  for (const value of ticks(top)) {
    shape("line", "axis", svg, { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
    label(svg, what.say ? what.say(value) : short(value), LEFT - 4, y(value) + 3, "end");
  }
  for (let n = 1; n <= span[1] * 1.01; n *= 2)
    if (n >= span[0] * 0.99 && (span[1] / span[0] < 200 || Math.log2(n) % 2 === 0)) label(svg, short(n), x(n), HEIGHT - 5, "middle");
  const inside = (n) => Math.min(Math.max(n, span[0]), span[1]);
  if (look.knee) {
    const from = x(inside(look.knee.low)), to = x(inside(look.knee.high));
    shape("rect", "knee", svg, { x: from - 1, width: Math.max(2, to - from + 2), y: TOP, height: base - TOP });
  }
  const path = (list) => list.map(([n, value]) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const across = (list) => list.filter(([n]) => n >= span[0] && n <= span[1]);
  if (what.line && look.line.length) {
    const line = across(look.line);
    const edge = [...line.map(([n, , , high]) => [n, high]), ...line.map(([n, , low]) => [n, low]).reverse()];
    shape("polygon", "band", svg, { points: path(edge) });
    shape("polyline", "line", svg, { points: path(line) });
  } else if (points.length > 1) shape("polyline", "line", svg, { points: path(points.map((each) => [each.n, what.of(each)])) });
  if (what.curve) shape("polyline", "line", svg, { points: path(across(look.line).map((place) => [place[0], Math.max(0, what.curve(place))])) });
  if (what.second) {
    const seconds = points.filter((point) => what.second(point) !== null);
    shape("polyline", "good", svg, { points: path(seconds.map((point) => [point.n, what.second(point)])) });
  }
  if (before.length > 1) shape("polyline", "faint", svg, { points: path(before.map((each) => [each.n, what.of(each)])) });
  if (what.limit) shape("line", "limit", svg, { x1: LEFT, x2: WIDTH - RIGHT, y1: y(what.limit), y2: y(what.limit) });
  if (look.measuring) {
    const at = x(inside(look.measuring));
    shape("line", "now", svg, { x1: at, x2: at, y1: TOP, y2: base });
  }
  if (look.found) {
    const at = x(inside(look.found.concurrency));
    shape("line", "chosen", svg, { x1: at, x2: at, y1: TOP, y2: base });
  }
  for (const point of points) {
    const look_of = `dot${point.steady ? "" : " hollow"}${point.failed > 0 ? " bad" : ""}`;
    shape("circle", look_of, svg, { cx: x(point.n), cy: y(what.of(point)), r: 3 });
  }
}

function charts(look) {
  const { slo, elasticity, attainment } = look.aims;
  const latency = { title: "p95 latency, s", limit: slo, of: (point) => (point.p95 === null ? null : point.p95 / 1000) };
  if (slo === null)
    return [
      { title: "throughput, rows/s", of: (point) => point.x, line: true },
      latency,
      { title: "1% more buys so many %", of: () => null, top: 1.05, limit: elasticity, curve: (place) => place[4] },
    ];
  return [
    { title: `rows/s (orange: within ${slo} s)`, of: (point) => point.x, line: true, second: (point) => point.good },
    latency,
    { title: `share within ${slo} s`, of: (point) => point.within, top: 1.05, limit: attainment,
      say: (value) => `${Math.round(100 * value)}%` },
  ];
}

function makeCharts(parent) {
  const cells = [];
  return (look) => {
    const list = charts(look);
    const all = [...look.points, ...look.before].map((point) => point.n).filter((n) => n > 0);
    const span = [Math.min(1, ...all), Math.max(2, look.setup.most, ...all) * 1.1];
    while (cells.length < list.length) {
      const cell = element("div", "llmlab-chart", parent);
      const title = element("div", "llmlab-chart-title", cell);
      const svg = document.createElementNS(SVG, "svg");
      cell.append(svg);
      cells.push({ cell, title, svg });
    }
    cells.forEach(({ cell, title, svg }, i) => {
      cell.hidden = i >= list.length;
      if (cell.hidden) return;
      setText(title, list[i].title);
      drawChart(svg, list[i], look, span);
    });
  };
}

// -- all of it -----------------------------------------------------------------------------------------------

function makeButtons(parent, model) {
  const made = {};
  for (const [kind, text] of [["use", "Use this"], ["stop", "Stop"], ["close", "Close"]]) {
    made[kind] = element("button", `llmlab-${kind}`, parent);
    made[kind].textContent = text;
    made[kind].dataset.lmSuppressShortcuts = "true";
    made[kind].onclick = () => tell(model, { kind });
  }
  made.close.title = "Leave a still table behind";
  return (look) => {
    made.use.disabled = !look.found;
    made.stop.hidden = look.state !== "running";
    made.close.hidden = look.state === "running"; // what it leaves behind is to say how it ended
  };
}

function makeOffer(parent, model) {
  const root = element("div", "llmlab-offer", parent);
  const text = element("span", "", root);
  const button = element("button", "llmlab-confirm", root);
  button.textContent = "Send them";
  button.onclick = () => tell(model, { kind: "confirm" });
  return (offer) => {
    root.hidden = !offer;
    setText(text, offer ? `This sends ${offer}, retries not counted; the answers are kept.` : "");
  };
}

function title(look) {
  if (look.state === "undecided") return "tune: choose what to try";
  const doing = look.measuring === null ? "" : `, trying ${look.measuring} in flight`;
  return `tune: ${look.state}${doing}, ${look.points.length} points`;
}

function makeFound(parent) {
  const line = element("div", "llmlab-found", parent);
  const number = element("strong", "llmlab-number", line);
  const figures = element("span", "llmlab-figures-said", line);
  const reason = element("div", "llmlab-reason", parent);
  const said = element("div", "llmlab-said", parent);
  return ({ found, used, aims }) => {
    setText(number, found ? `concurrency ${found.concurrency}${found.rpm ? `, rpm ${Math.round(found.rpm)}` : ""}` : "");
    const parts = [];
    if (found) {
      parts.push(`${short(found.rows_per_s)} rows/s`);
      if (found.p95_ms !== null) parts.push(`p95 ${(found.p95_ms / 1000).toFixed(2)} s`);
      if (found.within !== null) parts.push(`${Math.round(100 * found.within)}% within ${aims.slo} s`);
      if (!found.keeps) parts.push("the SLO is not kept");
      if (found.job) parts.push(found.job);
    }
    setText(figures, parts.join(", "));
    setText(reason, found ? found.reason : "");
    setText(said, used ? `Set: ${used}` : "");
  };
}

function render({ model, el }) {
  const store = storeOf(model);
  const root = element("div", "llmlab-tune", el);
  const head = element("div", "llmlab-head", root);
  const heading = element("span", "llmlab-title", head);
  const buttons = makeButtons(element("span", "llmlab-controls", head), model);
  const knobs = element("div", "llmlab-knobs", root);
  const scenario = makeSelect(knobs, model, "scenario", "provider", "What is tried: a simulated provider, or the real one");
  const sliders = SLIDERS.map((slider) => [slider.name, makeSlider(knobs, model, slider)]);
  const jitter = makeSelect(knobs, model, "jitter", "retry jitter", "How retries are spread");
  const offer = makeOffer(root, model);
  const curves = makeCharts(element("div", "llmlab-charts", root));
  setText(element("div", "llmlab-chart-title", root), AXIS);
  const found = makeFound(root);
  const notes = element("div", "llmlab-notes", root);

  let frame = 0;
  const draw = () => {
    frame = 0;
    const look = store.look;
    if (!look || look.points === undefined) return;
    const { setup, aims, choices } = look;
    setText(heading, title(look));
    buttons(look);
    const options = [...choices.scenario, ...(choices.live ? [["live", "the live provider…"]] : [])];
    if (setup.scenario === "") options.unshift(["", "choose…"]);
    scenario(options, look.offer ? "live" : setup.scenario, true);
    const live = setup.scenario === "live";
    const wanted = { ...aims, most: setup.most, rpm: setup.rpm, attempts: setup.attempts };
    const usable = { elasticity: true, slo: true, most: !live, rpm: !live && setup.rated, attempts: !live && setup.attempts !== null };
    for (const [name, slider] of sliders) slider(wanted[name], usable[name]);
    const spreads = choices.jitter.includes(setup.jitter) || setup.jitter === null ? choices.jitter : [...choices.jitter, setup.jitter];
    jitter(spreads.map((each) => [each, each]), setup.jitter, !live && setup.jitter !== null);
    offer(look.offer);
    curves(look);
    found(look);
    setText(notes, [look.note, ...(isUnheard(store) ? [UNHEARD] : [])].filter(Boolean).join("; "));
  };
  const ask = () => {
    if (!frame) frame = requestAnimationFrame(draw);
  };
  store.views.add(ask);
  draw();
  return () => store.views.delete(ask);
}

function initialize({ model }) {
  storeOf(model);
  return () => stores.delete(model.get("uid"));
}

export default { initialize, render };
