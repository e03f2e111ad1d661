// The log.

// Fill the view.
export function mount(panel) {
  const title = document.createElement("h2");
  title.textContent = "Events";
  panel.append(title);
}
