// The control of a run.

// Fill the view.
export function mount(panel) {
  const title = document.createElement("h2");
  title.textContent = "Run";
  panel.append(title);
}
