// What inputs are called on the screen, in every language, is in locales/. Pages up to 1.47 would show a socket's
// display_name, which the messages need, in place of its translation.
import { app } from "../../scripts/app.js";

const NATIVE = /^IPA[A-Z](?!dapter)/;

app.registerExtension({
  name: "IPAdapterStudio.Names",

  beforeRegisterNodeDef(_type, definition) {
    if (!NATIVE.test(definition.name)) return;
    for (const group of Object.values(definition.input ?? {})) {
      for (const [, options] of Object.values(group)) delete options?.display_name;
    }
  },
});
