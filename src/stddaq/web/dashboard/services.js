// The services, ring buffers and disks.

// Fill the view.
export function mount(panel) {
  const title = document.createElement("h2");
  title.textContent = "Services";
  panel.append(title);
}
