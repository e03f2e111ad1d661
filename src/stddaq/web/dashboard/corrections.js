// Running mean or sum, and background of the shown images, in float32.

import { LARGEST } from "./colours.js";
import { element } from "./page.js";

const MAX_IMAGES = 64;

export class Corrections {
  // `onChange` is called when the picture is to be drawn again.
  constructor(onChange) {
    this.onChange = onChange;
    this.clear();
    element("mean-of").addEventListener("change", () => { this.frames = []; onChange(); });
    element("mean-or-sum").addEventListener("change", () => { this.range = null; onChange(); });
    element("take-background").addEventListener("click", () => this.takeBackground());
    element("no-background").addEventListener("click", () => { this.background = null; this.showState(); onChange(); });
  }

  clear() {
    this.frames = [];
    this.background = null;
    this.last = null;
    this.range = null;
    this.showState();
  }

  get n() { return Math.min(Math.max(1, Math.round(Number(element("mean-of").value)) || 1), MAX_IMAGES); }

  isOn() { return this.n > 1 || this.background !== null; }

  // Return a new image as it is shown. Images of another place or reduction start again.
  of(frame) {
    if (this.frames.length && !isAlike(this.frames[0], frame)) this.frames = [];
    this.frames.push(frame);
    this.frames.splice(0, this.frames.length - this.n);
    this.last = frame;
    return this.again();
  }

  // Return the last image as it is shown now.
  again(frame = this.last) {
    const background = this.background && frame && isAlike(this.background.frame, frame) ? this.background.values : null;
    this.showState(this.background && !background ? "of another part or reduction" : "");
    if (this.n === 1 && !background) return frame;
    const frames = frame === this.last && this.frames.length ? this.frames : [frame], values = meanOf(frames);
    if (background) for (let i = 0; i < values.length; i++) values[i] -= background[i];
    // The background is that of one image.
    if (element("mean-or-sum").value === "sum") for (let i = 0; i < values.length; i++) values[i] *= frames.length;
    return this.quantised(frame, values);
  }

  takeBackground() {
    if (!this.last) return;
    this.background = { frame: this.last, values: meanOf(this.frames.length ? this.frames : [this.last]) };
    this.range = null;
    this.showState();
    this.onChange();
  }

  showState(problem = "") {
    element("background-state").textContent = this.background ? problem || `image ${this.background.frame.header.image}` : "none";
    element("no-background").disabled = !this.background;
  }

  // Values as counts, in steps that stay the same while they suffice.
  quantised(frame, values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (!(high >= low)) return frame;
    const { range } = this;
    if (!range || low < range.low || high > range.high || high - low < (range.high - range.low) / 8) {
      const room = 0.25 * (high - low || 1);
      this.range = { low: low - room, high: high + room };
    }
    const offset = this.range.low, scale = (this.range.high - this.range.low) / LARGEST, { counts } = frame;
    const shown = new Uint16Array(values.length);
    for (let i = 0; i < shown.length; i++) shown[i] = Number.isNaN(values[i]) ? counts[i] : Math.round((values[i] - offset) / scale);
    return { counts: shown, header: { ...frame.header, scale, offset, min: low, max: high, levels: levelsOf(shown, scale, offset), isCorrected: true } };
  }
}

function isAlike(one, other) {
  const key = ({ header: { origin, size, bin, reducer, shape } }) => [origin, size, bin, reducer, shape].join();
  return key(one) === key(other);
}

// Return the mean of images; NaN where the last one has a mark.
function meanOf(frames) {
  const n = frames[0].counts.length, values = new Float32Array(n), last = frames.at(-1).counts;
  for (const { counts, header: { scale, offset } } of frames) {
    for (let i = 0; i < n; i++) values[i] += (counts[i] * scale + offset) / frames.length;
  }
  for (let i = 0; i < n; i++) if (last[i] > LARGEST) values[i] = NaN;
  return values;
}

// Return percentiles 1 and 99.8 of every 16th pixel.
function levelsOf(counts, scale, offset) {
  const sample = new Uint16Array(Math.ceil(counts.length / 16)).map((_, i) => counts[16 * i]).filter((count) => count <= LARGEST).sort();
  if (!sample.length) return [0, 1];
  const at = (part) => sample[Math.floor(part * (sample.length - 1))] * scale + offset;
  return [at(0.01), Math.max(at(0.998), at(0.01) + scale)];
}
