// The last images: slider, playing, comparing two, and holding on an image with a problem.

import { element } from "./page.js";

const MAX_BYTES = 64e6, MAX_IMAGES = 30, PLAY_PERIOD_MS = 100, BLINK_PERIOD_MS = 500;

export class Film {
  // `show(frame)` draws an image; `onHold()` is called when the page is to be paused.
  constructor(show, onHold) {
    Object.assign(this, { show, onHold, frames: [], at: -1, compared: null, timer: 0 });
    element("film").addEventListener("input", () => { this.stop(); this.go(Number(element("film").value)); });
    element("play").addEventListener("click", () => this.play());
    element("blink").addEventListener("click", () => this.blink());
  }

  // Keep an image. Return whether it is to be held.
  add(frame) {
    const { frames } = this;
    frames.push(frame);
    let bytes = frames.reduce((sum, { counts }) => sum + counts.byteLength, 0);
    while (frames.length > 1 && (frames.length > MAX_IMAGES || bytes > MAX_BYTES)) bytes -= frames.shift().counts.byteLength;
    this.at = frames.length - 1;
    this.showPlace();
    const wanted = element("hold").value, { header } = frame;
    return (wanted === "damaged" && header.status !== 1) || (wanted === "saturated" && header.n_saturated > 0);
  }

  clear() {
    this.compared = null;
    this.stop();
    this.frames = [];
    this.at = -1;
    this.showPlace();
  }

  showPlace() {
    const slider = element("film"), last = Math.max(0, this.frames.length - 1);
    slider.max = String(last);
    slider.value = String(this.at);
    const frame = this.frames[this.at];
    element("film-place").textContent = frame ? `${frame.header.image}${this.at < last ? ` (${this.at - last})` : ""}` : "";
  }

  // Show one of the images; the page then stays on it.
  go(at) {
    if (!this.frames.length) return;
    this.onHold();
    this.at = Math.min(Math.max(at, 0), this.frames.length - 1);
    this.showPlace();
    this.show(this.frames[this.at]);
  }

  step(by) { this.stop(); this.go(this.at + by); }

  play() {
    if (this.mode === "play") return this.stop();
    this.stop();
    this.run("play", PLAY_PERIOD_MS, () => this.go((this.at + 1) % this.frames.length));
  }

  // The first time, note the image; the second time, alternate between it and the one that is shown.
  blink() {
    if (this.mode === "blink") { this.compared = null; return this.stop(); }
    const shown = this.frames[this.at];
    if (!shown) return;
    if (!this.compared) {
      this.compared = shown;
      element("blink").textContent = `Compare ${shown.header.image} with …`;
      return;
    }
    const pair = [this.compared, shown];
    this.onHold();
    this.run("blink", BLINK_PERIOD_MS, () => { this.show(pair[0]); pair.reverse(); });
  }

  run(mode, period, turn) {
    this.mode = mode;
    this.timer = setInterval(turn, period);
    element(mode).setAttribute("aria-pressed", "true");
    turn();
  }

  stop() {
    clearInterval(this.timer);
    this.mode = "";
    for (const id of ["play", "blink"]) element(id).setAttribute("aria-pressed", "false");
    if (!this.compared) element("blink").textContent = "Compare";
  }
}
