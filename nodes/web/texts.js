// Texts on nodes: what an adapter file is, below Load IP-Adapter; an error of ours, on the node that raised it.
// Both are drawn by the page, so that they keep their lines whichever way it draws nodes, and neither is saved.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LOADER = "IPALoadAdapter";
const OUTPUT = "ipadapter_studio"; // of the loader: its text, then the choices it is for (nodes/definitions/load_adapter.py)
const KEPT = "IPAdapterStudio.Texts"; // in the browser's storage, so that a reload shows them again
const MOST_KEPT = 50;
const FILE = "IP-Adapter file"; // names of widgets
const ERROR = "IP-Adapter error";
const OURS = /(?:^| - )(Found: .+?\.) (Expected: .+?\.) (What to do: .+)$/s; // ipadapter_core/errors.py
const WAIT = { step: 250, end: 60_000 }; // milliseconds until the server has looked at a prompt
const MARGIN = 10; // pixels that the page leaves around such a widget
const STYLE = {
  boxSizing: "border-box",
  padding: "4px 8px",
  borderRadius: "6px",
  background: "var(--comfy-input-bg, #222)",
  color: "var(--input-text, #ddd)",
  fontSize: "11px",
  lineHeight: "1.4",
  whiteSpace: "pre-wrap",
  overflowWrap: "anywhere",
  overflowY: "auto",
  userSelect: "text",
  cursor: "text",
};
const AS_ERROR = { border: "1px solid #d33" };

function made(text, name) {
  const element = document.createElement("div");
  Object.assign(element.style, STYLE, name === ERROR ? AS_ERROR : {});
  element.textContent = text;
  return element;
}

// The page asks for a height before it shows a widget, so it cannot be read from the widget itself.
function measured(text, name, width) {
  const probe = made(text, name);
  Object.assign(probe.style, { position: "absolute", visibility: "hidden", width: `${width}px` });
  document.body.append(probe);
  const height = probe.offsetHeight;
  probe.remove();
  return height;
}

const find = (node, name) => node.widgets?.find((each) => each.name === name);

const heights = new WeakMap(); // of nodes, before they grew
function fit(node) {
  node.setSize([node.size[0], Math.max(heights.get(node), node.computeSize()[1])]);
  if (!find(node, FILE) && !find(node, ERROR)) heights.delete(node);
  node.setDirtyCanvas?.(true, true);
}

function remove(node, name) {
  const widget = find(node, name);
  if (!widget) return;
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  fit(node);
}

function add(node, name, text) {
  const element = made(text, name);
  let seen, height;
  const widget = node.addDOMWidget(name, "ipadapter_text", element, {
    serialize: false, // not for the server
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => element.textContent,
    setValue: () => {},
    getMinHeight() {
      const shown = `${node.size[0]} ${element.textContent}`;
      if (shown !== seen) height = measured(element.textContent, name, node.size[0] - 2 * MARGIN) + 2 * MARGIN;
      seen = shown;
      return height;
    },
  });
  widget.serialize = false; // nor for a file
}

function show(node, name, text) {
  const widget = find(node, name);
  if (!text) return remove(node, name);
  if (!heights.has(node)) heights.set(node, node.size[1]);
  if (widget) widget.element.textContent = text; // the page would go on with the element it has
  else add(node, name, text);
  fit(node);
}

function kept() {
  try {
    const entries = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    return new Map(Array.isArray(entries) ? entries.filter(Array.isArray) : []);
  } catch {
    return new Map(); // a browser that keeps nothing, or something else under this name
  }
}

function keep(choice, text) {
  const texts = kept();
  texts.delete(choice);
  texts.set(choice, text);
  try {
    localStorage.setItem(KEPT, JSON.stringify([...texts].slice(-MOST_KEPT)));
  } catch {
    // full, or not allowed: a reload then shows nothing until the node runs
  }
}

const choices = (node) => node.widgets.filter((widget) => widget.serialize !== false);
const choiceOf = (node) => choices(node).map((widget) => String(widget.value)).join("\n");
const isLinked = (node) => node.inputs?.some((input, slot) => input.widget && node.isInputConnected(slot));

function* nodesBelow(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* nodesBelow(node.subgraph);
  }
}

const root = () => app.rootGraph ?? app.graph;

// An id such as "12:3" is that of node 3 of the subgraph 12.
function nodeOf(executionId) {
  let graph = root();
  let node;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(/^\d+$/.test(id) ? Number(id) : id);
    graph = node?.subgraph;
  }
  return node;
}

function followLoader(node) {
  const refresh = () => show(node, FILE, isLinked(node) ? "" : kept().get(choiceOf(node)));
  for (const widget of choices(node)) {
    const { callback } = widget;
    widget.callback = function (...given) {
      const result = callback?.apply(this, given);
      refresh();
      return result;
    };
  }
  const { onConfigure, onExecuted } = node;
  node.onConfigure = function (...given) {
    onConfigure?.apply(this, given);
    refresh();
  };
  node.onExecuted = function (output, ...given) {
    onExecuted?.call(this, output, ...given);
    const [text, ...choice] = output?.[OUTPUT] ?? [];
    if (typeof text !== "string") return;
    keep(choice.join("\n"), text);
    if (isLinked(node)) show(node, FILE, text);
    else refresh();
  };
}

function forgetErrors() {
  for (const node of nodesBelow(root())) remove(node, ERROR);
}

function showErrors(executionId, messages) {
  const found = messages.map((message) => OURS.exec(message?.trim() ?? "")).filter(Boolean);
  const texts = new Set(found.map((parts) => parts.slice(1).join("\n"))); // a text comes once for each input it is about
  const node = texts.size && nodeOf(executionId);
  if (node) show(node, ERROR, [...texts].join("\n\n"));
}

// No event tells what the server found before it ran anything.
let watching;
function watchForRefusal() {
  clearInterval(watching);
  const end = Date.now() + WAIT.end;
  watching = setInterval(() => {
    const refused = app.lastNodeErrors;
    if (!refused && Date.now() < end) return;
    clearInterval(watching);
    for (const [id, { errors }] of Object.entries(refused ?? {})) {
      showErrors(id, errors.map((error) => error.details));
    }
  }, WAIT.step);
}

app.registerExtension({
  name: "IPAdapterStudio.Texts",

  setup() {
    api.addEventListener("promptQueueing", () => {
      forgetErrors();
      watchForRefusal();
    });
    api.addEventListener("execution_start", () => {
      if (app.lastNodeErrors) return; // of the outputs that are not run
      clearInterval(watching);
      forgetErrors();
    });
    api.addEventListener("execution_error", ({ detail }) => showErrors(detail.node_id, [detail.exception_message]));
  },

  nodeCreated(node) {
    if (node.comfyClass === LOADER) followLoader(node);
  },
});
