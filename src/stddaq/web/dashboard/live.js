// The live image: receives, draws, acknowledges; what is shown of it and the values under the cursor.

import { LARGEST, MARKS } from "./colours.js";
import { Connection } from "./connection.js";
import { Corrections } from "./corrections.js";
import { decodeMessage } from "./decoding.js";
import { Drawing } from "./drawing.js";
import { Film } from "./film.js";
import { Histogram, Profiles } from "./graphs.js";
import { Look } from "./look.js";
import { may } from "./login.js";
import { download, element, shortNumber } from "./page.js";
import { Regions } from "./regions.js";
import { savePicture, tiffOf } from "./saving.js";
import { answerTo, get } from "./service.js";
import { isWhole, View } from "./view.js";

const STALE_S = 3, RATE_S = 4, VIEW_DELAY_MS = 200, REST_MS = 300, SLOW_HZ = 3, SAVE_TIMEOUT_MS = 300000;

export class LiveImage {
  constructor() {
    this.view = new View(element("canvas"), () => { this.draw(); this.wantView(); });
    const redraw = () => this.draw(), send = (settings) => this.connection?.send({ set: settings });
    this.look = new Look(() => this.paint());
    this.film = new Film((frame) => this.display(this.corrections.again(frame)), () => this.setPaused(true));
    this.corrections = new Corrections(() => { if (this.corrections.last) this.display(this.corrections.again()); });
    this.regions = new Regions(this.view, send, redraw);
    this.drawing = new Drawing(this.view, redraw);
    this.histogram = new Histogram((low, high) => this.look.fixLevels(low, high));
    this.profiles = new Profiles();
    this.shown = this.whole = this.waiting = this.cursor = null;
    this.decoding = Promise.resolve();
    this.isPaused = false;
    this.arrivals = [];
    this.lastAt = performance.now();
    this.listen();
    setInterval(() => this.showContact(), 500);
  }

  follow(detector, source) {
    this.detector = detector;
    this.problem = "";
    this.isConnected = false;
    this.shown = this.whole = this.waiting = null;
    // The image that is held is not of this detector.
    this.setPaused(false);
    this.film.clear();
    this.corrections.clear();
    this.regions.follow(detector);
    this.drawing.follow(detector);
    this.query = new URLSearchParams(source === "image" ? { detector } : { detector, source });
    const path = `api/live/ws?${this.query}`;
    if (this.connection) this.connection.restart(path);
    else this.connection = new Connection(path, (data) => this.receive(data), (isConnected) => this.connected(isConnected));
  }

  connected(isConnected) {
    this.isConnected = isConnected;
    this.wanted = null;
    if (isConnected) {
      this.connection.send({ set: { reducer: element("reducer").value, codec: element("quality").value } });
      this.regions.announce();
      this.wantView();
    }
    this.showContact();
  }

  receive(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.report(message.bye ?? message.error ?? "");
      return;
    }
    const { query } = this, arrivedAt = performance.now();
    this.decoding = this.decoding.then(() => decodeMessage(data)).then((frame) => {
      // Another detector may have been chosen meanwhile.
      if (query !== this.query) return;
      this.waiting = { ...frame, bytes: data.byteLength, arrivedAt };
      requestAnimationFrame(() => this.show());
    }).catch((error) => {
      this.report(`An image cannot be decoded: ${error.message}`);
      // The service waits for an acknowledgement, of an image that may have no number.
      this.connection.retry();
    });
  }

  // Draw what has arrived, then say so: the server sends the next image, also after one that cannot be drawn.
  show() {
    if (!this.waiting) return;
    const frame = this.waiting, { header } = frame, now = performance.now(), isFirst = !this.shown;
    this.waiting = null;
    try {
      this.take(frame);
      this.problem = "";
    } catch (error) {
      this.report(`Image ${header.image} cannot be shown: ${error.message}`);
    }
    this.lastAt = now;
    this.arrivals = [...this.arrivals.filter(({ at }) => now - at < RATE_S * 1000), { at: now, bytes: frame.bytes }];
    const busy = Math.max(0, performance.now() - frame.arrivedAt);
    this.connection.send({ ack: header.image, busy_ms: busy });
    if (isFirst) this.regions.announce();
    this.showFacts(header, busy);
  }

  take(frame) {
    if (isWhole(frame)) this.whole = frame;
    if (this.isPaused) return;
    const isHeld = this.film.add(frame);
    this.display(this.corrections.of(frame));
    this.regions.receive(frame.header);
    if (isHeld) this.setPaused(true);
  }

  display(frame) {
    this.shown = frame;
    this.paint();
  }

  paint() {
    if (!this.shown) return;
    const { header } = this.shown, colours = this.look.tableOf(header);
    this.view.setImage(this.shown, colours, element("marks").checked);
    this.draw();
    this.look.showMarks(header);
    this.histogram.show(this.shown, this.look.low, this.look.high, this.isPaused);
    this.showProfiles(null, this.isPaused);
  }

  draw() {
    const context = this.view.canvas.getContext("2d");
    this.view.draw();
    this.regions?.draw(context, this.view.pen);
    this.drawing?.draw(context, this.view.pen);
    this.showValue();
  }

  // Ask for the visible part at a finer resolution where the whole image is reduced.
  wantView() {
    clearTimeout(this.viewTimer);
    this.viewTimer = setTimeout(() => {
      const { whole, view } = this, seen = view.visible(), bin = whole?.header.bin ?? 1;
      const isFiner = bin > 1 && seen && !view.isAllSeen() && view.zoom * bin > 1;
      const wanted = isFiner ? [seen.x, seen.y, seen.width, seen.height] : null;
      if (JSON.stringify(wanted) === JSON.stringify(this.wanted)) return;
      this.wanted = wanted;
      this.connection?.send({ set: { view: wanted } });
    }, VIEW_DELAY_MS);
  }

  showFacts(header, busy) {
    const { arrivals } = this, seconds = (arrivals.at(-1).at - arrivals[0].at) / 1000;
    const perSecond = (sum) => (seconds > 0 ? sum / seconds : 0), rate = perSecond(arrivals.length - 1);
    const megabytes = perSecond(arrivals.slice(1).reduce((sum, { bytes }) => sum + bytes, 0)) / 1e6;
    const behind = Date.now() - Number(BigInt(header.taken_ns) / 1000000n);
    element("live").textContent = `image ${header.image}, ${rate.toFixed(1)} images/s, ${behind} ms behind`;
    const status = element("image-status");
    status.hidden = header.status === 1;
    const text = status.hidden ? "" : header.status === 2 ? "missing packets" : `status ${header.status}`;
    if (status.textContent !== text) status.textContent = text;
    // Quick images are no help to a browser that takes the time itself.
    const [height, width] = header.shape, isSlow = rate > 0 && rate < SLOW_HZ && header.skipped > 0 && busy * rate < 500;
    element("size").textContent = `${width} × ${height}, ${header.dtype}` + (header.bin > 1 ? `, shown 1:${header.bin}` : "");
    element("bandwidth").textContent = `${megabytes.toFixed(1)} MB/s`;
    element("propose-quick").hidden = !(isSlow && element("quality").value === "lz4");
  }

  showContact() {
    const seconds = (performance.now() - this.lastAt) / 1000, isStale = seconds > STALE_S;
    document.body.classList.toggle("stale", isStale && !this.isPaused);
    if (!isStale && !this.problem) this.say("");
    else if (this.connection?.isHanging) this.say(`stddaq-rest has not answered for ${Math.round((performance.now() - this.connection.heardAt) / 1000)} s: it hangs, or the network does not reach it. Connecting again.`);
    else if (this.connection?.isRefused) this.say("No images: stddaq-rest refuses another page. It serves 64, and 8 of one address without a login. Close one of them, or log in.");
    else if (this.connection && !this.isConnected) this.say(`No contact with stddaq-rest since ${Math.round(seconds)} s. Connecting again. If it does not run, stddaq up CONFIG starts it, or stddaq-rest CONFIG.`);
    else if (this.problem) this.say(this.problem);
    else if (isStale) this.say(`No new image since ${Math.round(seconds)} s: the source does not publish. Start the detector, or its receiver; stddaq simulate CONFIG is a source for tests.`);
  }

  // Say why there is no image, until there is one.
  report(problem) {
    this.problem = problem;
    this.showContact();
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
    this.showProfiles(pixel, true);
    const text = valueText(shown, pixel) ?? (this.whole && valueText(this.whole, pixel)) ?? "not shown";
    element("cursor").textContent = `x ${pixel.x}, y ${pixel.y}: ${text}`;
  }

  showProfiles(pixel, isUrgent) {
    if (this.shown) this.profiles.show(this.shown, pixel, this.regions.list.at(-1), isUrgent);
  }

  // Where the image is reduced, ask for the pixel itself when the cursor rests.
  async askValue() {
    const { cursor, shown } = this, pixel = cursor && this.view.pixelAt(cursor.x, cursor.y);
    if (!pixel || !shown || shown.header.bin === 1 || !may("view")) return;
    const { image } = shown.header, query = new URLSearchParams({ ...Object.fromEntries(this.query), image, x: pixel.x, y: pixel.y, n: 1 });
    // The image may be gone.
    const answer = await get(`api/live/pixel?${query}`).catch(() => null);
    if (!answer || this.cursor !== cursor) return;
    const { values: [[value]] } = answer.content;
    element("pixel").textContent = `x ${pixel.x}, y ${pixel.y} of image ${image}: ${shortNumber(value)}`;
  }

  setPaused(isPaused) {
    if (!isPaused) this.film.stop();
    this.isPaused = isPaused;
    element("pause").setAttribute("aria-pressed", String(isPaused));
    element("pause").textContent = isPaused ? "Go on" : "Pause";
  }

  fileName() { return `${this.detector}-${this.shown.header.image}`; }

  savePicture() {
    if (!this.shown) return;
    const { image, bin, reducer, status, taken_ns } = this.shown.header;
    const time = new Date(Number(BigInt(taken_ns) / 1000000n)).toISOString();
    const title = `${this.detector}, image ${image}${status === 1 ? "" : ` (status ${status})`}, ${time}${bin > 1 ? `, ${reducer} of ${bin} × ${bin}` : ""}`;
    savePicture(element("canvas"), element("bar"), [element("bar-high").textContent, element("bar-low").textContent], title, this.fileName());
  }

  saveCounts() {
    if (this.shown) download(`${this.fileName()}-shown.tiff`, tiffOf(this.shown), "image/tiff");
  }

  async saveImage() {
    if (!this.shown) return;
    const query = new URLSearchParams({ ...Object.fromEntries(this.query), image: this.shown.header.image });
    try {
      const answer = await answerTo(`api/live/image.tiff?${query}`, { signal: AbortSignal.timeout(SAVE_TIMEOUT_MS) });
      download(`${this.fileName()}.tiff`, await answer.blob());
      element("save-problem").textContent = "";
    } catch (error) {
      element("save-problem").textContent = error.message;
    }
  }

  // Show one of the images that browsers were sent, while the ring buffer has it.
  async showAgain(field) {
    try {
      const query = new URLSearchParams({ ...Object.fromEntries(this.query), image: field.value });
      const frame = await decodeMessage(await (await answerTo(`api/live/image?${query}`)).arrayBuffer());
      this.film.stop();
      this.setPaused(true);
      this.display(frame);
      element("film-place").textContent = frame.header.image;
    } catch (error) {
      field.setCustomValidity(error.message);
      field.reportValidity();
    }
  }

  listen() {
    const on = (id, name, run) => element(id).addEventListener(name, run);
    on("reducer", "change", ({ target }) => this.connection?.send({ set: { reducer: target.value } }));
    on("quality", "change", ({ target }) => this.connection?.send({ set: { codec: target.value } }));
    on("propose-quick", "click", () => {
      element("quality").value = "jpeg";
      element("quality").dispatchEvent(new Event("change"));
    });
    on("pause", "click", () => this.setPaused(!this.isPaused));
    on("fit", "click", () => this.view.fitAgain());
    on("actual", "click", () => this.view.actualSize());
    on("closer", "click", () => this.view.zoomBy(1.5));
    on("farther", "click", () => this.view.zoomBy(1 / 1.5));
    on("save-picture", "click", () => this.savePicture());
    on("save-counts", "click", () => this.saveCounts());
    on("save-image", "click", () => this.saveImage());
    on("image-id", "input", ({ target }) => target.setCustomValidity(""));
    on("image-id", "change", ({ target }) => { if (target.value) this.showAgain(target); });
    on("profile-of", "change", () => this.showProfiles(null, true));
    for (const id of ["histogram-part", "profile-part"]) on(id, "toggle", () => this.paint());
    on("canvas", "pointermove", (event) => {
      this.cursor = { x: event.clientX, y: event.clientY };
      this.showValue();
      clearTimeout(this.restTimer);
      this.restTimer = setTimeout(() => this.askValue(), REST_MS);
    });
    on("canvas", "pointerleave", () => { this.cursor = null; this.showValue(); });
  }
}

// Return the value of a pixel in a frame as text; undefined outside.
function valueText({ header, counts }, { x, y }) {
  const { bin, size: [height, width], origin: [top, left], scale, offset, reducer } = header;
  const column = Math.floor((x - left) / bin), row = Math.floor((y - top) / bin);
  if (column < 0 || row < 0 || column >= width || row >= height) return undefined;
  const count = counts[row * width + column];
  if (count > LARGEST) return MARKS[count].name;
  const names = { mean: `mean of ${bin} × ${bin}`, max: `maximum of ${bin} × ${bin}`, nearest: `one pixel of ${bin} × ${bin}` };
  const notes = [header.isCorrected && "corrected", header.codec === "jpeg" && "quick: about", bin > 1 && names[reducer]].filter(Boolean);
  return shortNumber(count * scale + offset) + (notes.length ? ` (${notes.join(", ")})` : "");
}
