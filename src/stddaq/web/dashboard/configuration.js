// The configuration.

// Fill the view.
export function mount(panel) {
  const title = document.createElement("h2");
  title.textContent = "Configuration";
  panel.append(title);
}
