// The picture on its canvas: which part of the image is seen, and drawing it.

import { LARGEST, markColour } from "./colours.js";

const CLOSEST = 64;

export class View {
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.width = this.height = 0;
    this.isFitted = true;
    // Pixels of the screen per pixel of the image, and the position of its corner on the canvas.
    this.zoom = 1;
    this.left = this.top = 0;
    this.bitmap = document.createElement("canvas");
    new ResizeObserver(() => { this.resize(); onChange(); }).observe(canvas);
    this.resize();
    this.listen();
  }

  resize() {
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * this.ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * this.ratio));
    if (this.isFitted) this.fit();
  }

  // Put an image of reduced counts into the bitmap. `size` is that of the full image.
  setImage(counts, header, table, withMarks) {
    const [height, width] = header.size, [fullHeight, fullWidth] = header.shape;
    this.bin = header.bin;
    if (this.bitmap.width !== width || this.bitmap.height !== height || !this.image) {
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
    if (fullWidth !== this.width || fullHeight !== this.height) {
      this.width = fullWidth;
      this.height = fullHeight;
      this.fit();
    }
  }

  draw() {
    const context = this.canvas.getContext("2d", { alpha: false });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#05070a";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.width) return;
    const scale = this.zoom * this.bin;
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(this.bitmap, this.left, this.top, this.bitmap.width * scale, this.bitmap.height * scale);
  }

  fit() {
    this.isFitted = true;
    const { canvas, width, height } = this;
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
    const smallest = 0.5 * Math.min(this.canvas.width / this.width, this.canvas.height / this.height);
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
    const { canvas } = this, width = this.width * this.zoom, height = this.height * this.zoom;
    const within = (value, size, room) => Math.min(Math.max(value, Math.min(0.1 * room, size) - size), room - Math.min(0.1 * room, size));
    this.left = within(this.left, width, canvas.width);
    this.top = within(this.top, height, canvas.height);
    this.onChange();
  }

  // Return the pixel of the image at a place of the page; null outside.
  pixelAt(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor(((clientX - box.left) * this.ratio - this.left) / this.zoom);
    const y = Math.floor(((clientY - box.top) * this.ratio - this.top) / this.zoom);
    return this.width && x >= 0 && y >= 0 && x < this.width && y < this.height ? { x, y } : null;
  }

  listen() {
    const { canvas } = this, fingers = new Map();
    const placeOf = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: (event.clientX - box.left) * this.ratio, y: (event.clientY - box.top) * this.ratio };
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = placeOf(event);
      this.zoomBy(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 300), x, y);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, placeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = placeOf(event), other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      fingers.set(event.pointerId, now);
      if (other) {
        const apart = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
        this.zoomBy(apart(now) / apart(before), other.x, other.y);
      } else this.moveBy(now.x - before.x, now.y - before.y);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
}
