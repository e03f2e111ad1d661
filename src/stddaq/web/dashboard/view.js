// The picture on its canvas: which part of the image is seen, how it is turned, and drawing it.

import { LARGEST, markColour } from "./colours.js";

const CLOSEST = 64;

// A reduced image, of all of the detector or of a part, as a bitmap.
class Layer {
  constructor() {
    this.bitmap = document.createElement("canvas");
    this.image = null;
  }

  set({ counts, header }, table, withMarks) {
    const [height, width] = header.size;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      Object.assign(this.bitmap, { width, height });
      this.image = new ImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const { pixels } = this;
    for (let i = 0; i < counts.length; i++) pixels[i] = table[counts[i]];
    if (withMarks && header.n_saturated + header.n_masked + header.n_missing) {
      for (let i = 0; i < counts.length; i++) {
        if (counts[i] > LARGEST) pixels[i] = markColour(counts[i], i % width, Math.floor(i / width));
      }
    }
    this.bitmap.getContext("2d").putImageData(this.image, 0, 0);
    [this.top, this.left] = header.origin;
    this.bin = header.bin;
  }

  draw(context) {
    const { bitmap, bin } = this;
    context.drawImage(bitmap, this.left, this.top, bitmap.width * bin, bitmap.height * bin);
  }
}

export const isWhole = ({ header }) => header.size[0] * header.bin >= header.shape[0] && header.size[1] * header.bin >= header.shape[1];

export class View {
  // `onChange` is called when the picture is to be drawn again.
  constructor(canvas, onChange) {
    Object.assign(this, { canvas, onChange, width: 0, height: 0, isFitted: true, zoom: 1, left: 0, top: 0 });
    // Mirrored first, then turned by quarters clockwise.
    this.turns = 0;
    this.isMirrored = false;
    // Draws with the mouse in place of moving the picture: {begin, move, end}, each with a pixel of the image.
    this.tool = null;
    this.whole = new Layer();
    this.part = null;
    new ResizeObserver(() => { this.resize(); onChange(); }).observe(canvas);
    this.resize();
    this.listen();
  }

  resize() {
    this.ratio = window.devicePixelRatio || 1;
    // What is drawn over the image grows with the letters, on walls.
    this.pen = this.ratio * Math.max(1, Number.parseFloat(getComputedStyle(this.canvas).fontSize) / 14);
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * this.ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * this.ratio));
    if (this.isFitted) this.fit();
  }

  setImage(frame, table, withMarks) {
    const [height, width] = frame.header.shape;
    if (isWhole(frame)) {
      this.whole.set(frame, table, withMarks);
      this.part = null;
    } else (this.part ??= new Layer()).set(frame, table, withMarks);
    if (width === this.width && height === this.height) return;
    Object.assign(this, { width, height });
    this.fit();
  }

  // The transformation of pixels of the image to those of the canvas, as canvases take it.
  matrix() {
    const { width: w, height: h, zoom } = this;
    let [a, b, c, d, e, f] = this.isMirrored ? [-1, 0, 0, 1, w, 0] : [1, 0, 0, 1, 0, 0];
    for (let turn = 0, tall = h, wide = w; turn < this.turns; turn++, [tall, wide] = [wide, tall]) {
      [a, b, c, d, e, f] = [-b, a, -d, c, tall - f, e];
    }
    return [a * zoom, b * zoom, c * zoom, d * zoom, e * zoom + this.left, f * zoom + this.top];
  }

  toCanvas(x, y) {
    const [a, b, c, d, e, f] = this.matrix();
    return { x: a * x + c * y + e, y: b * x + d * y + f };
  }

  toImage(x, y) {
    const [a, b, c, d, e, f] = this.matrix(), scale = this.zoom ** 2;
    return { x: (a * (x - e) + b * (y - f)) / scale, y: (c * (x - e) + d * (y - f)) / scale };
  }

  shownSize() { return this.turns % 2 ? [this.height, this.width] : [this.width, this.height]; }

  // Turn by a quarter, flip left and right, or exchange rows and columns, of what is seen.
  turn() { this.setOrientation(this.turns + 1, this.isMirrored); }
  flip() { this.setOrientation(-this.turns, !this.isMirrored); }
  transpose() { this.setOrientation(3 - this.turns, !this.isMirrored); }

  setOrientation(turns, isMirrored) {
    this.turns = ((turns % 4) + 4) % 4;
    this.isMirrored = isMirrored;
    this.fitAgain();
  }

  draw() {
    const context = this.canvas.getContext("2d", { alpha: false });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#05070a";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.width) return;
    context.setTransform(...this.matrix());
    for (const layer of [this.whole, this.part]) {
      if (!layer?.image) continue;
      context.imageSmoothingEnabled = this.zoom * layer.bin < 1;
      layer.draw(context);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (!this.isAllSeen()) this.drawOverview(context);
  }

  isAllSeen() {
    const [width, height] = this.shownSize(), { canvas, zoom } = this;
    return this.left >= -1 && this.top >= -1 && this.left + width * zoom <= canvas.width + 1 && this.top + height * zoom <= canvas.height + 1;
  }

  // The whole image in a corner, with a frame around the visible part.
  drawOverview(context) {
    const { canvas } = this, [width, height] = this.shownSize(), seen = this.visible();
    const scale = (0.2 * Math.min(canvas.width, canvas.height)) / Math.max(width, height);
    const { zoom, left, top } = this;
    const corner = { zoom: scale, left: canvas.width - width * scale - 8, top: canvas.height - height * scale - 8 };
    Object.assign(this, corner);
    context.fillStyle = "#05070a";
    context.fillRect(this.left - 2, this.top - 2, width * scale + 4, height * scale + 4);
    context.setTransform(...this.matrix());
    context.imageSmoothingEnabled = true;
    if (this.whole.image) this.whole.draw(context);
    context.setTransform(1, 0, 0, 1, 0, 0);
    const one = this.toCanvas(seen.x, seen.y), other = this.toCanvas(seen.x + seen.width, seen.y + seen.height);
    Object.assign(this, { zoom, left, top });
    context.strokeStyle = "#fff";
    context.lineWidth = this.pen;
    context.strokeRect(corner.left - 1, corner.top - 1, width * scale + 2, height * scale + 2);
    context.strokeStyle = "#ffd24d";
    context.lineWidth = 2 * this.pen;
    context.strokeRect(one.x, one.y, other.x - one.x, other.y - one.y);
  }

  // Return the part of the image that is seen, in whole pixels; null if there is none.
  visible() {
    const one = this.toImage(0, 0), other = this.toImage(this.canvas.width, this.canvas.height);
    const span = (from, to, size) => [Math.max(0, Math.floor(Math.min(from, to))), Math.min(size, Math.ceil(Math.max(from, to)))];
    const [left, right] = span(one.x, other.x, this.width), [top, bottom] = span(one.y, other.y, this.height);
    return right > left && bottom > top ? { x: left, y: top, width: right - left, height: bottom - top } : null;
  }

  fit() {
    this.isFitted = true;
    const { canvas } = this, [width, height] = this.shownSize();
    if (!width) return;
    this.zoom = Math.min(canvas.width / width, canvas.height / height);
    this.left = (canvas.width - width * this.zoom) / 2;
    this.top = (canvas.height - height * this.zoom) / 2;
  }

  fitAgain() { this.fit(); this.onChange(); }

  // One pixel of the image on one pixel of the screen, around the middle.
  actualSize() { this.zoomBy(1 / this.zoom); }

  // Zoom around a point of the canvas, by default its middle.
  zoomBy(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.width) return;
    const [width, height] = this.shownSize();
    const smallest = 0.5 * Math.min(this.canvas.width / width, this.canvas.height / height);
    const zoom = Math.min(Math.max(this.zoom * factor, Math.min(smallest, 1)), CLOSEST);
    this.left = x - ((x - this.left) * zoom) / this.zoom;
    this.top = y - ((y - this.top) * zoom) / this.zoom;
    this.zoom = zoom;
    this.isFitted = false;
    this.keepInSight();
  }

  moveBy(x, y) {
    this.left += x;
    this.top += y;
    this.isFitted = false;
    this.keepInSight();
  }

  // A tenth of the picture always stays on the canvas.
  keepInSight() {
    const { canvas } = this, [width, height] = this.shownSize().map((size) => size * this.zoom);
    const within = (value, size, room) => Math.min(Math.max(value, Math.min(0.1 * room, size) - size), room - Math.min(0.1 * room, size));
    this.left = within(this.left, width, canvas.width);
    this.top = within(this.top, height, canvas.height);
    this.onChange();
  }

  // Return the place on the canvas of a place on the page.
  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * this.ratio, y: (event.clientY - box.top) * this.ratio };
  }

  // Return the pixel of the image at a place of the page; null outside.
  pixelAt(clientX, clientY) {
    const place = this.placeOf({ clientX, clientY }), at = this.toImage(place.x, place.y);
    const x = Math.floor(at.x), y = Math.floor(at.y);
    return this.width && x >= 0 && y >= 0 && x < this.width && y < this.height ? { x, y } : null;
  }

  // The pixel that is nearest to the mouse.
  nearest(event) {
    const place = this.placeOf(event), at = this.toImage(place.x, place.y);
    const within = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
    return { x: within(at.x, this.width), y: within(at.y, this.height) };
  }

  listen() {
    const { canvas } = this, fingers = new Map();
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = this.placeOf(event);
      this.zoomBy(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 300), x, y);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (this.tool && this.width) this.tool.begin(this.nearest(event));
      else fingers.set(event.pointerId, this.placeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.tool && event.buttons) return this.tool.move(this.nearest(event));
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = this.placeOf(event), other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      fingers.set(event.pointerId, now);
      if (other) {
        const apart = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
        this.zoomBy(apart(now) / apart(before), other.x, other.y);
      } else this.moveBy(now.x - before.x, now.y - before.y);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        fingers.delete(event.pointerId);
        if (this.tool && name === "pointerup" && this.width) this.tool.end(this.nearest(event));
      });
    }
  }
}
