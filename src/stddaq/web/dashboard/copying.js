// Buttons that copy a text.

import { make } from "./service.js";

const SAID_MS = 2000;

// Return a button that copies what `text()` returns, and says for a moment whether that has worked.
export function copyButton(label, text, properties = {}) {
  const button = make("button", {
    ...properties,
    onclick: async () => {
      const isCopied = await copy(text()).catch(() => false);
      button.textContent = isCopied ? "Copied" : "Cannot copy here";
      setTimeout(() => { button.textContent = label; }, SAID_MS);
    },
  }, label);
  return button;
}

// Pages that another computer sends without encryption have no clipboard; they can copy what is selected.
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return true;
  }
  const focused = document.activeElement, area = make("textarea", { value: text, className: "skip", "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
