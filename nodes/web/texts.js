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
const OURS = /^(Found: .+?\.) (Expected: .+?\.) (What to do: .+)$/s; // ipadapter_core/errors.py
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
const AS_ERROR = { border: "1px solid #c33", color: "var(--error-text, #ff7b7b)" };

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

function remove(node, name) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return;
  widget.onRemove?.();
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  if (node.size[1] === widget.grownTo) node.setSize([node.size[0], widget.grownFrom]);
  node.setDirtyCanvas?.(true, true);
}

function show(node, name, text) {
  const before = node.widgets?.find((each) => each.name === name);
  if (before?.element.textContent === text) return;
  remove(node, name);
  if (!text) return;
  let width, height;
  const widget = node.addDOMWidget(name, "ipadapter_text", made(text, name), {
    serialize: false, // not for the server
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => text,
    setValue: () => {},
    getMinHeight() {
      if (width !== node.size[0]) {
        width = node.size[0];
        height = measured(text, name, width - 2 * MARGIN) + 2 * MARGIN;
      }
      return height;
    },
  });
  widget.serialize = false; // nor for a file
  widget.grownFrom = node.size[1];
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  widget.grownTo = node.size[1];
  node.setDirtyCanvas?.(true, true);
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
const isLinked = (node) => node.inputs?.some((input) => input.widget && input.link != null);

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

app.registerExtension({
  name: "IPAdapterStudio.Texts",

  setup() {
    api.addEventListener("execution_start", () => {
      for (const node of nodesBelow(root())) remove(node, ERROR);
    });
    api.addEventListener("execution_error", ({ detail }) => {
      const parts = OURS.exec(detail.exception_message?.trim() ?? "");
      const node = parts && nodeOf(detail.node_id);
      if (node) show(node, ERROR, parts.slice(1).join("\n"));
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === LOADER) followLoader(node);
  },
});
