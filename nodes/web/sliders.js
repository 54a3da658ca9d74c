// Strengths are sliders of 0 to 2, which is what is used. The server takes the whole range of the input: a link, a
// prompt or a saved workflow may say more, and the slider then reaches as far as its value.
import { app } from "../../scripts/app.js";

const NODES = ["IPAApply", "IPAApplyImage", "IPAApplyFaceLora"];
const USUAL = { min: 0, max: 2 };

function reach(widget) {
  const value = Number(widget.value) || 0;
  widget.options.min = Math.min(USUAL.min, value);
  widget.options.max = Math.max(USUAL.max, value);
}

app.registerExtension({
  name: "IPAdapterStudio.Sliders",

  nodeCreated(node) {
    const widget = NODES.includes(node.comfyClass) && node.widgets?.find((each) => each.name === "strength");
    if (!widget) return;
    reach(widget);
    const { callback } = widget; // which brings a value within the reach, as when a prompt is opened
    widget.callback = function (...given) {
      reach(widget);
      return callback?.apply(this, given);
    };
    const { onConfigure } = node;
    node.onConfigure = function (...given) {
      onConfigure?.apply(this, given);
      reach(widget);
    };
  },
});
