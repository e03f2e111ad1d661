// The recent runs.

// Fill the view.
export function mount(panel) {
  const title = document.createElement("h2");
  title.textContent = "Runs";
  panel.append(title);
}
