// Keys of the live image, and the list of them under "?".

import { element } from "./page.js";

const MOVE_BY = 60, STEP = 1.5;

export function followKeys(live) {
  const { view, film } = live;
  const actions = {
    " ": () => live.setPaused(!live.isPaused), "+": () => view.zoomBy(STEP), "=": () => view.zoomBy(STEP), "-": () => view.zoomBy(1 / STEP),
    0: () => view.fitAgain(), 1: () => view.actualSize(), ",": () => film.step(-1), ".": () => film.step(1),
    p: () => film.play(), b: () => film.blink(), s: () => live.savePicture(), "?": () => element("help").showModal(),
  };
  const moves = { ArrowLeft: [MOVE_BY, 0], ArrowRight: [-MOVE_BY, 0], ArrowUp: [0, MOVE_BY], ArrowDown: [0, -MOVE_BY] };
  element("show-help").addEventListener("click", actions["?"]);
  element("close-help").addEventListener("click", () => element("help").close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || element("help").open || isTyping(event)) return;
    const move = event.target === element("canvas") && moves[event.key];
    const action = (event.key === "?" || !element("panel-live").hidden) && actions[event.key];
    if (!move && !action) return;
    event.preventDefault();
    if (move) view.moveBy(...move);
    else action();
  });
}

// Keys that belong to the focused field or button.
function isTyping({ key, target }) {
  if (target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  if (target instanceof HTMLInputElement && target.type !== "checkbox" && target.type !== "range") return true;
  return key === " " && target.matches("button, input, summary");
}
