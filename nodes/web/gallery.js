// ComfyUI's gallery shows a pack's templates as the server's file system lists them; here they stand as one learns.
import { app } from "../../scripts/app.js";

const ORDER = [
  "Image prompt.app",
  "Image prompt",
  "Style of a picture.app",
  "Style and composition",
  "Portrait.app",
  "Portrait (FaceID)",
  "Two references.app",
  "Two references",
  "Left and right",
  "Where each reference acts",
  "A part of a picture as reference",
  "Strength over the steps",
  "Strengths and presets side by side",
  "Which picture is closest",
  "A strength for each block",
  "Strong, not burnt",
  "A reference as a small file",
  "A small file as reference",
  "Face and style",
  "Image to image with a reference",
  "Inpaint with a reference",
  "ControlNet with a reference",
  "Upscale by tiles",
  "Stacked adapters",
  "Animation with a schedule",
  "Train on your pictures",
];
const PACK = decodeURIComponent(import.meta.url.split("/").at(-2));

function place(name) {
  const number = ORDER.indexOf(name);
  return number < 0 ? ORDER.length : number;
}

app.registerExtension({
  name: "IPAdapterStudio.Gallery",
  init() {
    const list = app.api?.getWorkflowTemplates;
    if (!list) return;
    app.api.getWorkflowTemplates = async function () {
      const templates = await list.apply(this, arguments);
      templates[PACK]?.sort((one, other) => place(one) - place(other) || one.localeCompare(other));
      return templates;
    };
  },
});
