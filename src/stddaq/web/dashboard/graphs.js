// The histogram of the shown counts with handles for the levels, and profiles through the cursor and the region.

import { LARGEST } from "./colours.js";
import { element } from "./page.js";
import { drawLines, lineColour, PacedDrawing, prepared } from "./plot.js";

const BINS = 256, PERIOD_MS = 250;

// Return values of counts between `low` and `high` in `BINS` bins; values outside are left out. There are more
// pixels than counts, so counts are counted first.
export function histogramOf({ counts, header: { scale, offset } }, low, high) {
  const bins = new Float64Array(BINS), factor = BINS / (high - low || 1), pixels = new Uint32Array(65536);
  for (let i = 0; i < counts.length; i++) pixels[counts[i]]++;
  for (let count = 0; count <= LARGEST; count++) {
    if (!pixels[count]) continue;
    const bin = Math.floor((count * scale + offset - low) * factor);
    if (bin >= 0 && bin < BINS) bins[bin] += pixels[count];
    else if (bin === BINS) bins[BINS - 1] += pixels[count];
  }
  return bins;
}

export class Histogram {
  // `setLevels(low, high)` is called while a handle is dragged.
  constructor(setLevels) {
    this.canvas = element("histogram");
    this.setLevels = setLevels;
    this.drawing = new PacedDrawing(this.canvas, PERIOD_MS, () => this.draw());
    this.dragged = null;
    element("histogram-of").addEventListener("change", () => this.drawing.now());
    const value = (event) => this.low + (event.offsetX / this.canvas.clientWidth) * (this.high - this.low);
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!Number.isFinite(this.low)) return;
      this.canvas.setPointerCapture(event.pointerId);
      const at = value(event);
      this.dragged = Math.abs(at - this.levels[0]) < Math.abs(at - this.levels[1]) ? 0 : 1;
      this.move(at);
    });
    this.canvas.addEventListener("pointermove", (event) => { if (this.dragged !== null) this.move(value(event)); });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => { this.dragged = null; });
  }

  move(value) {
    const levels = [...this.levels];
    levels[this.dragged] = value;
    if (levels[1] > levels[0]) this.setLevels(...levels);
  }

  show(frame, low, high, isUrgent = false) {
    this.frame = frame;
    this.levels = [low, high];
    if (isUrgent || this.dragged !== null) this.drawing.now();
    else this.drawing.soon();
  }

  // Return the numbers of pixels, and set the axis.
  bins() {
    const { frame, levels: [low, high] } = this, { histogram } = frame.header;
    const isFull = element("histogram-of").value === "full" && Boolean(histogram);
    element("histogram-outside").textContent = isFull ? `image ${histogram.image}; ${histogram.n_below} below, ${histogram.n_above} above` : "";
    // A handle that is dragged stays under the mouse, so the axis does not follow it.
    if (isFull) {
      if (this.dragged === null) Object.assign(this, { low: histogram.low, high: histogram.high });
      return histogram.counts;
    }
    if (this.dragged === null) {
      const room = 0.25 * (high - low);
      this.low = Math.max(low - room, Math.min(frame.header.min, low));
      this.high = high + room;
    }
    return histogramOf(frame, this.low, this.high);
  }

  draw() {
    if (!this.frame) return;
    const { canvas, levels: [low, high] } = this;
    const bins = this.bins(), top = Math.log1p(Math.max(...bins)) || 1;
    const { context, width, height, text } = prepared(canvas);
    context.fillStyle = lineColour(0);
    bins.forEach((count, i) => {
      const tall = (Math.log1p(count) / top) * (height - 4);
      context.fillRect((i / BINS) * width, height - tall, width / BINS + 0.5, tall);
    });
    context.fillStyle = text;
    for (const level of [low, high]) {
      const x = ((level - this.low) / (this.high - this.low)) * width;
      context.fillRect(x - 1, 0, 2, height);
      context.fillRect(x - 4, 0, 8, 6);
    }
  }
}

// Return [row, column] through a pixel of the image, as far as it is in the frame.
export function profilesAt(frame, pixel) {
  const { counts, header: { bin, size: [height, width], origin: [top, left] } } = frame;
  const x = Math.floor((pixel.x - left) / bin), y = Math.floor((pixel.y - top) / bin);
  const value = valueIn(frame);
  return [
    y >= 0 && y < height ? Array.from({ length: width }, (_, i) => value(counts[y * width + i])) : [],
    x >= 0 && x < width ? Array.from({ length: height }, (_, i) => value(counts[i * width + x])) : [],
  ];
}

// Return the means over rows and over columns of a box of the image.
export function profilesOf(frame, [x, y, wide, tall]) {
  const { counts, header: { bin, size: [height, width], origin: [top, left] } } = frame, value = valueIn(frame);
  const within = (from, length, corner, size) => [Math.max(0, Math.floor((from - corner) / bin)), Math.min(size, Math.ceil((from + length - corner) / bin))];
  const [x0, x1] = within(x, wide, left, width), [y0, y1] = within(y, tall, top, height);
  if (x1 <= x0 || y1 <= y0) return [[], []];
  const mean = (n, length, at) => Array.from({ length: n }, (_, i) => {
    let sum = 0, valid = 0;
    for (let k = 0; k < length; k++) {
      const one = value(counts[at(i, k)]);
      if (!Number.isNaN(one)) { sum += one; valid++; }
    }
    return valid ? sum / valid : NaN;
  });
  return [
    mean(x1 - x0, y1 - y0, (i, k) => (y0 + k) * width + x0 + i),
    mean(y1 - y0, x1 - x0, (i, k) => (y0 + i) * width + x0 + k),
  ];
}

const valueIn = ({ header: { scale, offset } }) => (count) => (count > LARGEST ? NaN : count * scale + offset);

export class Profiles {
  constructor() {
    this.pixel = null;
    this.drawing = new PacedDrawing(element("profile-row"), PERIOD_MS, () => this.draw());
  }

  // `region`: the last one, or undefined.
  show(frame, pixel, region, isUrgent = false) {
    if (pixel) this.pixel = pixel;
    Object.assign(this, { frame, region });
    if (isUrgent) this.drawing.now();
    else this.drawing.soon();
  }

  draw() {
    if (!this.frame) return;
    const { frame, region } = this, canvas = element("profile-row");
    const source = element("profile-of").value;
    if (source === "region" && !region) { this.say("Draw a region first"); return; }
    if (source === "cursor" && !this.pixel) { this.say("Move over the image"); return; }
    const [row, column] = source === "region" ? profilesOf(frame, region.at) : profilesAt(frame, this.pixel);
    const where = source === "region" ? `region ${region.id}` : `x ${this.pixel.x}, y ${this.pixel.y}`;
    this.say(source === "region" ? `Means of rows and columns of ${where}` : `Row and column through ${where}`);
    drawLines(canvas, [{ values: row, colour: lineColour(0) }], "along x");
    drawLines(element("profile-column"), [{ values: column, colour: lineColour(1) }], "along y");
  }

  say(text) { element("profile-place").textContent = text; }
}
