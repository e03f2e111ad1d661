// Choices that this browser keeps. Without storage, as in some private windows, they last until the page closes.

const memory = new Map();
const PREFIX = "stddaq.";

export function kept(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return memory.has(name) ? memory.get(name) : otherwise;
  }
}

export function keep(name, value) {
  memory.set(name, value);
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // The value lasts as long as the page.
  }
}
