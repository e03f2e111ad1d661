// Small helpers of all parts of the page.

export const element = (id) => document.getElementById(id);

export function node(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = String(text);
  if (className) made.className = className;
  return made;
}

export function button(text, run, label = text) {
  const made = node("button", text);
  if (label !== text) made.setAttribute("aria-label", label);
  made.addEventListener("click", run);
  return made;
}

export function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) || Math.abs(value) >= 1e5 ? String(Math.round(value)) : String(Number(value.toPrecision(5)));
}

// Let the browser save a file.
export function download(name, content, type) {
  const link = document.createElement("a"), blob = content instanceof Blob ? content : new Blob([content], { type });
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
