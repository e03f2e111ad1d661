// How counts become colours: map, scale, levels, marks.

import { colourTable, drawBar, MAP_NAMES, markColour, MARKS } from "./colours.js";
import { element } from "./page.js";
import { keep, kept } from "./settings.js";

const WHEEL_STEP = 0.002;

// Return a level with the digits that matter beside the distance of both, 1 of at least 500.
function rounded(value, span) {
  const digits = Math.min(20, Math.max(0, -Math.floor(Math.log10(span / 500))));
  return String(Number(value.toFixed(digits)));
}

export class Look {
  // `onChange` is called when the picture is to be painted again.
  constructor(onChange) {
    this.onChange = onChange;
    this.table = null;
    Object.assign(this, { map: kept("colours", "viridis"), inverted: kept("inverted", false), scale: kept("scale", "linear"), low: 0, high: 1 });
    this.listen();
    this.showBar();
  }

  // Return the colours of the counts of an image, whose levels they follow unless they are set by hand.
  tableOf({ scale, offset, levels: [low, high] }) {
    if (element("levels").value === "auto") this.follow(low, high);
    if (!this.table || this.table.step !== scale || this.table.offset !== offset) {
      this.table = { colours: colourTable(this, scale, offset), step: scale, offset };
      this.showBar();
    }
    return this.table.colours;
  }

  // Small changes need no new table.
  follow(low, high) {
    const span = this.high - this.low;
    if (Math.abs(low - this.low) >= 0.01 * span || Math.abs(high - this.high) >= 0.01 * span) this.setLevels(low, high);
  }

  setLevels(low, high) {
    if (!(high > low)) return;
    Object.assign(this, { low, high });
    this.table = null;
    for (const id of ["low", "high"]) {
      if (document.activeElement !== element(id)) element(id).value = rounded(this[id], high - low);
    }
  }

  // Levels that stay until "auto" is chosen again.
  fixLevels(low, high) {
    element("levels").value = "manual";
    this.setLevels(low, high);
    this.onChange();
  }

  readLevels() {
    const [low, high] = ["low", "high"].map((id) => Number(element(id).value)), isRight = high > low;
    for (const id of ["low", "high"]) element(id).setCustomValidity(isRight ? "" : "The brightest value must be above the darkest");
    element("high").reportValidity();
    if (isRight) this.fixLevels(low, high);
  }

  showBar() {
    drawBar(element("bar"), this);
    element("bar-high").textContent = rounded(this.high, this.high - this.low);
    element("bar-low").textContent = rounded(this.low, this.high - this.low);
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

  change(change) {
    Object.assign(this, change);
    this.table = null;
    this.onChange();
    this.showBar();
  }

  listen() {
    const on = (id, name, run) => element(id).addEventListener(name, run);
    element("colours").replaceChildren(...MAP_NAMES.map((name) => new Option(name, name)));
    element("colours").value = this.map;
    element("inverted").checked = this.inverted;
    element("scale").value = this.scale;
    on("colours", "change", ({ target }) => { keep("colours", target.value); this.change({ map: target.value }); });
    on("inverted", "change", ({ target }) => { keep("inverted", target.checked); this.change({ inverted: target.checked }); });
    on("scale", "change", ({ target }) => { keep("scale", target.value); this.change({ scale: target.value }); });
    for (const id of ["levels", "marks"]) on(id, "change", () => this.onChange());
    for (const id of ["low", "high"]) on(id, "change", () => this.readLevels());
    // The wheel moves the level that is nearer.
    element("bar").addEventListener("wheel", (event) => {
      event.preventDefault();
      const step = -event.deltaY * WHEEL_STEP * (this.high - this.low), isUpper = event.offsetY < element("bar").clientHeight / 2;
      this.fixLevels(isUpper ? this.low : this.low + step, isUpper ? this.high + step : this.high);
    }, { passive: false });
  }
}
