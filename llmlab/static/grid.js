// Panes that fill while their answers are written. All that is shown is set as text; no HTML comes from the kernel.
//
// The texts are kept with the model, not with a view: what arrives before the first view is drawn, or while none is,
// is not lost, and a second view shows all of it. Each piece says where it belongs; after a gap the kernel is asked for
// the whole, which it may send late or never, so nothing here waits for an answer.

const stores = new Map();
const BLOCK = 8192; // characters in one text node, a little more or less: appending to a very long one lays out all of it
const ASK = 1000; // milliseconds between two questions for the whole

function storeOf(model) {
  const id = model.get("uid");
  let store = stores.get(id);
  if (store) return store;
  store = { panes: model.get("panes"), views: new Set(), asked: 0 };
  stores.set(id, store);
  model.on("msg:custom", (message) => {
    if (message.kind === "whole") store.panes = message.panes;
    else if (message.kind === "news") hear(store, model, message);
    for (const ask of store.views) ask();
  });
  return store;
}

function hear(store, model, { texts, heads }) {
  for (const [number, head] of heads) store.panes[number].head = head;
  const gaps = texts.filter(([number, take, offset, text]) => !add(store.panes[number], take, offset, text));
  if (!gaps.length || Date.now() - store.asked < ASK) return;
  store.asked = Date.now();
  model.send({ kind: "whole" });
}

function add(pane, take, offset, text) {
  if (take < pane.take) return true; // of an attempt that has failed since
  const known = take > pane.take ? 0 : pane.text.length;
  if (offset > known) return false;
  pane.text = (take > pane.take ? "" : pane.text) + text.slice(known - offset);
  pane.take = take;
  return true;
}

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function button(text, className, parent, press) {
  const made = element("button", className, parent);
  made.textContent = text;
  made.onclick = () => {
    made.disabled = true;
    press();
  };
  return made;
}

const over = (pane) => ["done", "stopped", "error"].includes(pane.head.state);

// A text in blocks that end where lines end: the last one grows, the others are never touched again.
function makeText(parent) {
  let last = null;
  let shown = 0;
  let take = 0;
  let follows = true; // unless somebody has scrolled up to read
  parent.onscroll = () => {
    follows = parent.scrollHeight - parent.scrollTop - parent.clientHeight < 24;
  };
  parent.onwheel = (event) => {
    if (event.deltaY < 0) follows = false; // at once: text that comes before the scroll is told would take it back
  };
  const append = (text) => {
    if (!last) last = element("div", "llmlab-block", parent).appendChild(document.createTextNode(""));
    const cut = last.length + text.length > BLOCK ? text.indexOf("\n", Math.max(0, BLOCK - last.length)) + 1 : 0;
    last.appendData(cut ? text.slice(0, cut) : text);
    if (!cut) return;
    last = null;
    if (cut < text.length) append(text.slice(cut));
  };
  return (pane) => {
    if (pane.take !== take || pane.text.length < shown) {
      parent.replaceChildren();
      [last, shown, take, follows] = [null, 0, pane.take, true];
    }
    if (pane.text.length === shown) return;
    append(pane.text.slice(shown));
    shown = pane.text.length;
    if (follows) parent.scrollTop = parent.scrollHeight;
  };
}

function makePane(parent, pane, number, model) {
  const root = element("div", "llmlab-pane", parent);
  const head = element("div", "llmlab-pane-head", root);
  const title = element("span", "llmlab-pane-title", head);
  title.textContent = title.title = pane.title;
  const stop = button("Stop", "llmlab-pane-stop", head, () => model.send({ kind: "stop", pane: number }));
  stop.setAttribute("aria-label", `Stop ${pane.title}`);
  const said = element("div", "llmlab-pane-said", root);
  element("span", "llmlab-dot", said);
  const figures = element("span", "llmlab-pane-figures", said);
  const body = element("div", "llmlab-pane-body", root);
  const text = element("div", "llmlab-text", body);
  text.tabIndex = 0; // so that it can be scrolled by keys
  const setPane = makeText(text);
  const error = element("div", "llmlab-pane-error", body);
  return (now) => {
    root.dataset.state = now.head.state;
    setText(figures, [now.head.state, now.head.figures].filter(Boolean).join(", "));
    stop.hidden = over(now);
    setPane(now);
    setText(error, now.head.error);
    error.hidden = !now.head.error;
  };
}

function count(panes) {
  const ended = panes.filter(over).length;
  const failed = panes.filter((pane) => pane.head.state === "error").length;
  return `show: ${ended} of ${panes.length} ended${failed ? `, ${failed} with an error` : ""}`;
}

function render({ model, el }) {
  const store = storeOf(model);
  const root = element("div", "llmlab-grid", el);
  const head = element("div", "llmlab-head", root);
  const title = element("span", "llmlab-title", head);
  title.setAttribute("role", "status");
  const stopAll = button("Stop all", "llmlab-stop-all", head, () => model.send({ kind: "stop" }));
  const panes = element("div", "llmlab-panes", root);
  panes.style.setProperty("--llmlab-columns", model.get("columns"));
  const draws = store.panes.map((pane, number) => makePane(panes, pane, number, model));

  let frame = 0;
  const draw = () => {
    frame = 0;
    store.panes.forEach((pane, number) => draws[number](pane));
    setText(title, count(store.panes));
    stopAll.hidden = store.panes.every(over);
  };
  const ask = () => {
    if (!frame) frame = requestAnimationFrame(draw);
  };
  store.views.add(ask);
  draw();
  ask(); // once more when it is part of the page: only then there is something to scroll
  return () => {
    cancelAnimationFrame(frame);
    store.views.delete(ask);
  };
}

function initialize({ model }) {
  storeOf(model);
  return () => stores.delete(model.get("uid"));
}

export default { initialize, render };
