// The live board of a job. All that is shown is set as text; no HTML comes from the kernel.
//
// The latest look is kept with the model, not with a view: messages that arrive before the first view is drawn,
// or while none is, are not lost. Controls are numbered custom messages: a kernel that is busy with a cell may hear them
// late, so nothing here waits for it; after a while the board says so.

const UNHEARD = "The kernel hears this when the cell is over. The notebook's own Stop (\u25a0) works at once.";
const PATIENCE = 2000; // milliseconds after which a message counts as unheard

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
  // Numbers of a reloaded page must not be those of the page before.
  store.sent = Math.max(Date.now(), store.sent + 1);
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

const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1));
const milliseconds = (value) => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const kinds = (pairs) => pairs.map(([name, count]) => `${name} ${count.toLocaleString("en")}`).join(", ");

function seconds(value) {
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
}

function count(value) {
  for (const [size, by, unit] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
    if (value >= size) return (value / by).toFixed(1) + unit;
  return String(value);
}

// As `llmlab.prices.dollars`: cents, or two figures of what is less than one; a batch of cheap rows must not look free.
function dollars(value) {
  const digits = value >= 0.01 || !value ? 2 : 1 - Math.floor(Math.log10(value));
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

const WIDE = new Set(["retries", "errors"]);

function figures(look) {
  const limit = look.limit === null ? "" : ` of ${look.limit}`;
  const said = [
    ["rows/s", number(look.rate)],
    ["in flight", `${look.in_flight}${limit}`],
    ["waiting", String(look.waiting)],
    ["elapsed", seconds(look.elapsed_s)],
    ["left", look.eta_s === null ? "unknown" : seconds(look.eta_s)],
  ];
  if (look.p50_ms !== null) said.push(["p50 / p95", `${milliseconds(look.p50_ms)} / ${milliseconds(look.p95_ms)}`]);
  said.push(["tokens in / out", `${count(look.input_tokens)} / ${count(look.output_tokens)}`]);
  if (look.cost_usd !== null) {
    const whole = look.projected_usd === null ? "" : `, ${dollars(look.projected_usd)} in all`;
    said.push(["cost, $", dollars(look.cost_usd) + whole]);
  }
  said.push(["bound by", look.bound_by || "nothing yet"]);
  if (look.breaker) said.push(["breaker", look.breaker.replace("_", " ")]);
  if (look.retries) said.push(["retries", `${look.retries} (${kinds(look.retried)})`]);
  if (look.errors) said.push(["errors", kinds(look.kinds) || String(look.errors)]);
  return said;
}

function drawLine(path, caption, points) {
  const top = Math.max(...points, 1e-9);
  setText(caption, points.length > 1 ? `rows/s since it began, at most ${number(top)}` : "");
  const step = 240 / Math.max(1, points.length - 1);
  const at = points.map((value, i) => `${(i * step).toFixed(1)},${(30 - (28 * value) / top).toFixed(1)}`);
  path.setAttribute("points", at.join(" "));
}

function makeFigures(parent) {
  const cells = [];
  return (said) => {
    while (cells.length < said.length) {
      const cell = element("div", "", parent);
      cells.push([element("div", "llmlab-what", cell), element("div", "llmlab-value", cell), cell]);
    }
    cells.forEach(([what, value, cell], i) => {
      cell.hidden = i >= said.length;
      if (cell.hidden) return;
      cell.className = `llmlab-figure ${WIDE.has(said[i][0]) ? "llmlab-wide" : ""}`;
      setText(what, said[i][0]);
      setText(value, said[i][1]);
    });
  };
}

function makeControls(parent, model) {
  const stop = element("button", "llmlab-stop", parent);
  stop.textContent = "Stop";
  stop.onclick = () => tell(model, { kind: "stop" });
  const pause = element("button", "llmlab-pause", parent);
  const label = element("label", "llmlab-label", parent);
  label.textContent = "concurrency ";
  const slider = element("input", "llmlab-concurrency", label);
  slider.type = "range";
  slider.min = 1;
  const shown = element("span", "llmlab-limit", label);
  // JupyterLab would take the arrow keys and Enter for itself; it asks the very element that has the focus.
  for (const control of [stop, pause, slider]) control.dataset.lmSuppressShortcuts = "true";
  let held = 0; // while somebody drags it, and a moment after, the kernel's figure does not move the handle
  slider.oninput = () => {
    held = Date.now() + 1500;
    setText(shown, slider.value);
    tell(model, { kind: "concurrency", limit: Number(slider.value) });
  };
  return (look) => {
    const over = ["done", "stopped", "failed"].includes(look.state);
    stop.disabled = pause.disabled = slider.disabled = over;
    const paused = look.state === "paused";
    setText(pause, paused ? "Resume" : "Pause");
    pause.onclick = () => tell(model, { kind: paused ? "resume" : "pause" });
    label.hidden = look.limit === null;
    if (look.limit === null || Date.now() < held) return;
    slider.max = Math.max(64, 2 * look.limit, Number(slider.max) || 0);
    slider.value = look.limit;
    setText(shown, String(look.limit));
  };
}

function render({ model, el }) {
  const store = storeOf(model);
  const root = element("div", "llmlab-board", el);
  const head = element("div", "llmlab-head", root);
  const title = element("span", "llmlab-title", head);
  const controls = makeControls(element("span", "llmlab-controls", head), model);
  const bar = element("div", "llmlab-bar", root);
  const fill = element("div", "llmlab-fill", bar);
  const failed = element("div", "llmlab-failed", bar);
  const setFigures = makeFigures(element("div", "llmlab-figures", root));
  const caption = element("div", "llmlab-what llmlab-caption", root);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "llmlab-spark");
  svg.setAttribute("viewBox", "0 0 240 32");
  svg.setAttribute("preserveAspectRatio", "none");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.append(path);
  root.append(svg);
  const notes = element("div", "llmlab-notes", root);

  let frame = 0;
  const draw = () => {
    frame = 0;
    const look = store.look;
    if (!look || look.done === undefined) return;
    const of = look.total === null ? "" : ` of ${look.total.toLocaleString("en")}`;
    setText(title, `${look.name}: ${look.state}, ${look.done.toLocaleString("en")}${of} rows`);
    const share = (part) => `${look.total ? (100 * part) / look.total : 0}%`;
    fill.style.width = share(look.ok);
    failed.style.width = share(look.errors + look.cancelled);
    setFigures(figures(look));
    drawLine(path, caption, look.spark);
    setText(notes, [...look.notes, ...(isUnheard(store) ? [UNHEARD] : [])].join("; "));
    controls(look);
  };
  const ask = () => {
    if (!frame) frame = requestAnimationFrame(draw);
  };
  store.views.add(ask);
  const settled = () => {
    store.look = model.get("look");
    ask();
  };
  model.on("change:look", settled);
  draw();
  return () => {
    store.views.delete(ask);
    model.off("change:look", settled);
  };
}

function initialize({ model }) {
  storeOf(model);
  return () => stores.delete(model.get("uid"));
}

export default { initialize, render };
