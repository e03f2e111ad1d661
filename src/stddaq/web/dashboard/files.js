// The images and the rows of a file by their position, also while a run writes it.

import { colourTable } from "./colours.js";
import { decodeMessage } from "./decoding.js";
import { answerTo, get, make, table } from "./service.js";
import { kept } from "./settings.js";
import { View } from "./view.js";

export class FileImages {
  constructor(file) {
    this.file = file;
    this.canvas = make("canvas", { className: "file-image", tabIndex: 0, role: "img", "aria-label": `Image of ${file}; the wheel zooms` });
    this.view = new View(this.canvas, () => this.view?.draw());
    this.index = make("input", { type: "number", className: "small", min: 0, step: 1, value: 0, "aria-label": "Position of the image", onchange: () => this.load() });
    this.text = make("span", { className: "file-image-text", role: "status" });
    const step = (by) => () => { this.index.value = Math.max(0, Number(this.index.value) + by); this.load(); };
    this.element = make("div", { className: "file-images" },
      make("p", { className: "buttons" }, make("button", { onclick: step(-1) }, "Previous image"), this.index, make("button", { onclick: step(1) }, "Next image"), this.text),
      this.canvas);
    this.load();
  }

  async load() {
    const number = this.loads = (this.loads ?? 0) + 1;
    try {
      const query = new URLSearchParams({ filename: this.file, index: this.index.value });
      const answer = await answerTo(`api/h5/image?${query}`);
      const frame = await decodeMessage(await answer.arrayBuffer());
      if (number === this.loads) this.show(frame);
    } catch (error) {
      if (number === this.loads) this.text.textContent = error.message;
    }
  }

  show(frame) {
    const { header } = frame, [low, high] = header.levels;
    const look = { map: kept("colours", "viridis"), inverted: kept("inverted", false), scale: kept("scale", "linear"), low, high };
    this.view.setImage(frame, colourTable(look, header.scale, header.offset), true);
    this.view.draw();
    const id = header.image === null ? "" : `image ${header.image}, ${header.status === 1 ? "good" : `not good (status ${header.status})`}, `;
    this.text.textContent = `${id}${header.index + 1} of ${header.n_images}`;
  }
}

const ROWS = 50;

export class FileRows {
  constructor(file) {
    this.file = file;
    this.first = 0;
    this.text = make("span", { role: "status" });
    this.place = make("div", { className: "file-rows" });
    const step = (by) => () => { this.first = Math.max(0, Math.min(this.first + by, this.last ?? 0)); this.load(); };
    this.element = make("div", {},
      make("p", { className: "buttons" }, make("button", { onclick: step(-ROWS) }, "Previous rows"), make("button", { onclick: step(ROWS) }, "Next rows"), this.text),
      this.place);
    this.load();
  }

  async load() {
    try {
      const query = new URLSearchParams({ filename: this.file, first_row: this.first, max_rows: ROWS });
      const { content: { tables } } = await get(`api/h5/read_metadata?${query}`);
      const n = Math.max(0, ...tables.map((one) => one.n_rows));
      this.last = Math.floor(Math.max(0, n - 1) / ROWS) * ROWS;
      this.text.textContent = n ? `rows ${this.first + 1} to ${Math.min(n, this.first + ROWS)} of ${n}` : "no rows";
      this.place.replaceChildren(...tables.filter((one) => Object.keys(one.columns).length).map((one) => rowsOf(one)));
    } catch (error) {
      this.text.textContent = error.message;
    }
  }
}

function rowsOf({ name, columns }) {
  const names = Object.keys(columns), n = Math.max(...names.map((column) => columns[column].length));
  const cell = (value) => value === undefined || value === null ? "–" : String(value);
  const rows = Array.from({ length: n }, (_, row) => names.map((column) => cell(columns[column][row])));
  return make("figure", {}, make("figcaption", {}, name), table(names, rows));
}
