// The live image: receives, draws, acknowledges; levels, colours, marks, and values under the cursor.

import { colourTable, drawBar, LARGEST, MAP_NAMES, markColour, MARKS } from "./colours.js";
import { Connection } from "./connection.js";
import { decodeMessage } from "./decoding.js";
import { keep, kept } from "./settings.js";
import { View } from "./view.js";

const element = (id) => document.getElementById(id);
const STALE_S = 3, RATE_S = 4, MOVE_BY = 60;

export class LiveImage {
  constructor() {
    this.view = new View(element("canvas"), () => this.draw());
    this.shown = null;
    this.waiting = null;
    this.isPaused = false;
    this.arrivals = [];
    this.lastAt = performance.now();
    this.table = null;
    this.look = { map: kept("colours", "viridis"), inverted: kept("inverted", false), scale: kept("scale", "linear"), low: 0, high: 1 };
    this.cursor = null;
    this.listen();
    setInterval(() => this.showContact(), 500);
  }

  follow(detector) {
    this.problem = "";
    this.isConnected = false;
    this.shown = null;
    const path = `api/live/ws?detector=${encodeURIComponent(detector)}`;
    if (this.connection) this.connection.restart(path);
    else this.connection = new Connection(path, (data) => this.receive(data), (isConnected) => this.connected(isConnected));
  }

  connected(isConnected) {
    this.isConnected = isConnected;
    if (isConnected) this.connection.send({ set: { reducer: element("reducer").value } });
    this.showContact();
  }

  receive(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.problem = message.bye ?? message.error ?? "";
      this.showContact();
      return;
    }
    try {
      this.waiting = decodeMessage(data);
    } catch (error) {
      this.problem = `The image cannot be shown: ${error.message}`;
      this.connection.close();
      return;
    }
    this.problem = "";
    requestAnimationFrame(() => this.show());
  }

  // Draw what has arrived, then say so: the server sends the next image.
  show() {
    if (!this.waiting) return;
    const { header } = this.waiting, now = performance.now();
    if (!this.isPaused) {
      this.shown = this.waiting;
      this.paint();
    }
    this.waiting = null;
    this.lastAt = now;
    this.arrivals = [...this.arrivals.filter((at) => now - at < RATE_S * 1000), now];
    this.connection.send({ ack: header.image });
    this.showFacts(header);
  }

  paint() {
    if (!this.shown) return;
    const { header, counts } = this.shown, withMarks = element("marks").checked;
    this.followLevels(header);
    if (!this.table || this.table.step !== header.scale || this.table.offset !== header.offset) {
      const { scale: step, offset } = header;
      this.table = { colours: colourTable(this.look, step, offset), step, offset };
      this.showBar();
    }
    this.view.setImage(counts, header, this.table.colours, withMarks);
    this.draw();
    this.showMarks(header);
  }

  draw() {
    this.view.draw();
    this.showValue();
  }

  // Take the levels of the image over, unless they are set by hand. Small changes need no new table.
  followLevels(header) {
    if (element("levels").value !== "auto") return;
    const [low, high] = header.levels, { look } = this, span = look.high - look.low;
    if (Math.abs(low - look.low) < 0.01 * span && Math.abs(high - look.high) < 0.01 * span) return;
    this.setLevels(low, high);
  }

  setLevels(low, high) {
    if (!(high > low)) return;
    Object.assign(this.look, { low, high });
    this.table = null;
    for (const [id, value] of [["low", low], ["high", high]]) {
      if (document.activeElement !== element(id)) element(id).value = shortNumber(value);
    }
  }

  changeLook(change) {
    Object.assign(this.look, change);
    this.table = null;
    this.paint();
    this.showBar();
  }

  showBar() {
    drawBar(element("bar"), this.look);
    element("bar-high").textContent = shortNumber(this.look.high);
    element("bar-low").textContent = shortNumber(this.look.low);
  }

  showMarks(header) {
    const text = JSON.stringify(Object.values(MARKS).map((mark) => header[mark.count]));
    if (text === this.markText) return;
    this.markText = text;
    const items = Object.entries(MARKS).filter(([, mark]) => header[mark.count] > 0).map(([count, mark]) => {
      const item = document.createElement("li"), sample = document.createElement("canvas");
      Object.assign(sample, { width: 8, height: 8 });
      const context = sample.getContext("2d"), image = context.createImageData(8, 8), pixels = new Uint32Array(image.data.buffer);
      pixels.forEach((_, i) => { pixels[i] = markColour(Number(count), i % 8, i >> 3); });
      context.putImageData(image, 0, 0);
      item.append(sample, `${header[mark.count]} ${mark.name}`);
      return item;
    });
    element("mark-list").replaceChildren(...items);
  }

  showFacts(header) {
    const { arrivals } = this, seconds = (arrivals.at(-1) - arrivals[0]) / 1000;
    const rate = seconds > 0 ? (arrivals.length - 1) / seconds : 0;
    const behind = Date.now() - Number(BigInt(header.taken_ns) / 1000000n);
    element("live").textContent = `image ${header.image}, ${rate.toFixed(1)} images/s, ${behind} ms behind`;
    const isGood = header.status === 1, status = element("image-status");
    status.hidden = isGood;
    const text = isGood ? "" : header.status === 2 ? "missing packets" : `status ${header.status}`;
    if (status.textContent !== text) status.textContent = text;
    const [height, width] = header.shape;
    element("size").textContent = `${width} × ${height}, ${header.dtype}` + (header.bin > 1 ? `, shown 1:${header.bin}` : "");
  }

  showContact() {
    const seconds = (performance.now() - this.lastAt) / 1000, isStale = seconds > STALE_S;
    document.body.classList.toggle("stale", isStale && !this.isPaused);
    if (!isStale && !this.problem) this.say("");
    else if (this.connection && !this.isConnected) this.say(`No contact with stddaq-rest since ${Math.round(seconds)} s. Connecting again.`);
    else if (this.problem) this.say(this.problem);
    else if (isStale) this.say(`No new image since ${Math.round(seconds)} s: the source does not publish.`);
  }

  say(text) {
    const veil = element("veil");
    veil.hidden = !text;
    if (veil.textContent !== text) veil.textContent = text;
  }

  // The value of a pixel is exact only where the image is not reduced.
  showValue() {
    const { cursor, shown } = this, pixel = cursor && this.view.pixelAt(cursor.x, cursor.y);
    if (!pixel || !shown) {
      element("cursor").textContent = "Move over the image for values";
      return;
    }
    const { header, counts } = shown, { bin } = header;
    const count = counts[Math.floor(pixel.y / bin) * header.size[1] + Math.floor(pixel.x / bin)];
    const value = count > LARGEST ? MARKS[count].name : shortNumber(count * header.scale + header.offset);
    const meaning = bin > 1 && count <= LARGEST ? ` (${header.reducer === "max" ? "maximum" : "mean"} of ${bin} × ${bin})` : "";
    element("cursor").textContent = `x ${pixel.x}, y ${pixel.y}: ${value}${meaning}`;
  }

  setPaused(isPaused) {
    this.isPaused = isPaused;
    element("pause").setAttribute("aria-pressed", String(isPaused));
    element("pause").textContent = isPaused ? "Go on" : "Pause";
  }

  listen() {
    const on = (id, name, run) => element(id).addEventListener(name, run);
    element("colours").replaceChildren(...MAP_NAMES.map((name) => new Option(name, name)));
    element("colours").value = this.look.map;
    element("inverted").checked = this.look.inverted;
    element("scale").value = this.look.scale;
    on("colours", "change", ({ target }) => { keep("colours", target.value); this.changeLook({ map: target.value }); });
    on("inverted", "change", ({ target }) => { keep("inverted", target.checked); this.changeLook({ inverted: target.checked }); });
    on("scale", "change", ({ target }) => { keep("scale", target.value); this.changeLook({ scale: target.value }); });
    on("levels", "change", () => this.paint());
    for (const id of ["low", "high"]) on(id, "change", () => this.setByHand());
    on("reducer", "change", ({ target }) => this.connection?.send({ set: { reducer: target.value } }));
    on("marks", "change", () => this.paint());
    on("pause", "click", () => this.setPaused(!this.isPaused));
    on("fit", "click", () => this.view.fitAgain());
    on("actual", "click", () => this.view.actualSize());
    on("closer", "click", () => this.view.zoomBy(1.5));
    on("farther", "click", () => this.view.zoomBy(1 / 1.5));
    on("canvas", "pointermove", (event) => { this.cursor = { x: event.clientX, y: event.clientY }; this.showValue(); });
    on("canvas", "pointerleave", () => { this.cursor = null; this.showValue(); });
    document.addEventListener("keydown", (event) => this.press(event));
    this.showBar();
  }

  setByHand() {
    const [low, high] = ["low", "high"].map((id) => Number(element(id).value));
    const isRight = high > low;
    for (const id of ["low", "high"]) element(id).setCustomValidity(isRight ? "" : "The brightest value must be above the darkest");
    element("high").reportValidity();
    if (!isRight) return;
    element("levels").value = "manual";
    this.setLevels(low, high);
    this.paint();
  }

  // Keys of the page, unless they belong to a field.
  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { target } = event;
    if (target instanceof HTMLSelectElement || (target instanceof HTMLInputElement && target.type !== "checkbox")) return;
    if (event.key === " " && (target instanceof HTMLButtonElement || target instanceof HTMLInputElement)) return;
    const moves = { ArrowLeft: [MOVE_BY, 0], ArrowRight: [-MOVE_BY, 0], ArrowUp: [0, MOVE_BY], ArrowDown: [0, -MOVE_BY] };
    const actions = {
      " ": () => this.setPaused(!this.isPaused), "+": () => this.view.zoomBy(1.5), "=": () => this.view.zoomBy(1.5),
      "-": () => this.view.zoomBy(1 / 1.5), 0: () => this.view.fitAgain(), 1: () => this.view.actualSize(),
    };
    const move = target === element("canvas") && moves[event.key];
    if (!move && !actions[event.key]) return;
    event.preventDefault();
    if (move) this.view.moveBy(...move);
    else actions[event.key]();
  }
}

function shortNumber(value) {
  return Number.isInteger(value) || Math.abs(value) >= 1e5 ? String(Math.round(value)) : String(Number(value.toPrecision(5)));
}
