// A new page opens ComfyUI's gallery by itself, at a section that is empty where ComfyUI's own templates are not installed.
import { app } from "../../scripts/app.js";

const SECTION = ["IP-Adapter demo", "ipadapter-studio-demo"]; // in English, and in languages without a name
const SECONDS = 30;

function section() {
  const entries = document.querySelectorAll("[role=dialog] div, [role=dialog] button");
  return [...entries].reverse().find((entry) => SECTION.includes(entry.textContent.trim()));
}

app.registerExtension({
  name: "IPAdapterStudio.Demo",
  setup() {
    const end = Date.now() + SECONDS * 1000;
    const timer = setInterval(() => {
      const entry = section();
      entry?.click();
      if (entry || Date.now() > end) clearInterval(timer);
    }, 200);
  },
});
