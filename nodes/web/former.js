// Files saved with nodes that IPAdapter_plus dropped, or with a copy's ids: they become nodes that are here.
// What becomes what, and when, stands in former.json; nodes/legacy/former/renaming.py does the same to prompts.
import { app } from "../../scripts/app.js";

const table = fetch(new URL("former.json", import.meta.url))
  .then((answer) => answer.json())
  .catch((error) => {
    console.warn(`IP-Adapter Studio cannot read former.json: old ids stay as they are. ${error}`);
    return []; // a file is better opened with nodes missing than not at all
  });
const installed = new Map(); // names of inputs by node id

// A file may hold anything: what is no list of nodes is left to the page.
const entries = (value) => (Array.isArray(value) ? value.filter((entry) => entry && typeof entry === "object") : []);

function* nodesOf(workflow) {
  yield* entries(workflow.nodes);
  for (const subgraph of entries(workflow.definitions?.subgraphs)) yield* entries(subgraph.nodes);
}

function isOld(row, node) {
  if (!installed.has(row.becomes)) return false;
  if (!row.has) return !installed.has(row.id);
  return entries(node.inputs).some((input) => input.name === row.has) && !installed.get(row.id)?.has(row.has);
}

app.registerExtension({
  name: "IPAdapterStudio.FormerNodes",

  beforeRegisterNodeDef(_type, definition) {
    const { required, optional } = definition.input ?? {};
    installed.set(definition.name, new Set(Object.keys({ ...required, ...optional })));
  },

  async beforeConfigureGraph(workflow) {
    const rows = await table;
    for (const node of nodesOf(workflow)) {
      const row = rows.find((each) => each.id === node.type && isOld(each, node));
      if (!row) continue;
      node.type = row.becomes;
      if (node.properties?.["Node name for S&R"]) node.properties["Node name for S&R"] = row.becomes;
    }
  },
});
