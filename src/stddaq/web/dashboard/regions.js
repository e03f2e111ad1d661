// Regions: drawn on the image, measured by the preview service at full resolution, plotted over time.

import { button, download, element, node, shortNumber } from "./page.js";
import { drawLines, lineColour, PacedDrawing } from "./plot.js";
import { keep, kept } from "./settings.js";

const MAX_REGIONS = 8, KEPT_S = 600, PLOT_PERIOD_MS = 500, COLUMNS = ["mean", "sum", "sd", "min", "max", "n_saturated"];
const QUANTITIES = ["mean", "sum", "sd", "max"];

export class Regions {
  // `send(settings)` reaches the server; `redraw()` draws the picture again.
  constructor(view, send, redraw) {
    Object.assign(this, { view, send, redraw, list: [], numbers: new Map(), history: [], drawn: null });
    this.plot = new PacedDrawing(element("region-plot"), PLOT_PERIOD_MS, () => this.drawPlot());
    element("add-box").addEventListener("click", () => this.use("box"));
    element("add-circle").addEventListener("click", () => this.use("circle"));
    element("add-middle").addEventListener("click", () => this.addInMiddle());
    element("region-csv").addEventListener("click", () => this.save());
    element("region-quantity").replaceChildren(...QUANTITIES.map((name) => new Option(name, name)));
    element("region-quantity").addEventListener("change", () => this.plot.now());
  }

  follow(detector) {
    this.key = `regions.${detector}`;
    this.history = [];
    this.list = kept(this.key, []);
    this.showTable();
  }

  // Draw the next region with the mouse.
  use(kind) {
    const isOn = this.view.tool?.kind === kind;
    for (const other of ["box", "circle"]) element(`add-${other}`).setAttribute("aria-pressed", String(!isOn && other === kind));
    if (isOn) { this.view.tool = null; return; }
    let from = null;
    const area = (to) => [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(to.x - from.x) + 1, Math.abs(to.y - from.y) + 1];
    this.view.tool = {
      kind,
      begin: (pixel) => { from = pixel; },
      move: (pixel) => { if (from) { this.drawn = { id: 0, kind, at: area(pixel) }; this.redraw(); } },
      end: (pixel) => { if (from) { this.drawn = null; this.use(kind); this.add(kind, area(pixel)); } },
    };
  }

  // A region without the mouse: its numbers can be edited.
  addInMiddle() {
    const seen = this.view.visible();
    if (!seen) return;
    const size = (length) => Math.max(1, Math.floor(length / 4)), [width, height] = [size(seen.width), size(seen.height)];
    this.add("box", [seen.x + Math.floor((seen.width - width) / 2), seen.y + Math.floor((seen.height - height) / 2), width, height]);
  }

  add(kind, at) {
    if (this.list.length >= MAX_REGIONS) return;
    const id = 1 + Math.max(0, ...this.list.map((region) => region.id));
    this.change([...this.list, { id, kind, at }]);
  }

  change(list) {
    this.list = list;
    keep(this.key, list);
    this.showTable();
    this.announce();
    this.redraw();
  }

  // Only those that lie in the image: the detector may have another size than when they were drawn.
  announce() {
    const { width, height } = this.view;
    const isInside = ({ at: [x, y, w, h] }) => x >= 0 && y >= 0 && w > 0 && h > 0 && x + w <= width && y + h <= height;
    if (width) this.send({ regions: this.list.filter(isInside) });
  }

  receive({ regions, taken_ns, image }) {
    this.numbers = new Map(regions.map((numbers) => [numbers.id, numbers]));
    const t = Number(BigInt(taken_ns) / 1000000n) / 1000;
    if (regions.length) this.history.push({ t, image, regions });
    while (this.history.length && this.history[0].t < t - KEPT_S) this.history.shift();
    this.showNumbers();
    this.plot.soon();
  }

  showTable() {
    const rows = this.list.map((region, index) => {
      const row = node("tr"), name = node("th", `${region.id} ${region.kind}`);
      name.scope = "row";
      name.style.color = lineColour(index);
      const places = node("td");
      ["x", "y", "width", "height"].forEach((label, i) => {
        const field = document.createElement("input");
        Object.assign(field, { type: "number", value: region.at[i], min: i < 2 ? 0 : 1, className: "small" });
        field.setAttribute("aria-label", `${label} of region ${region.id}`);
        field.addEventListener("change", () => this.edit(region, i, field));
        places.append(field);
      });
      const numbers = node("td", "", "region-numbers");
      numbers.dataset.region = region.id;
      const end = node("td");
      end.append(button("×", () => this.change(this.list.filter((other) => other !== region)), `Remove region ${region.id}`));
      row.append(name, places, numbers, end);
      return row;
    });
    element("region-table").replaceChildren(...rows);
    this.showNumbers();
  }

  edit(region, i, field) {
    const value = Number(field.value), at = region.at.map((old, k) => (k === i ? value : old));
    const limit = [this.view.width, this.view.height][i % 2];
    const isRight = Number.isInteger(value) && value >= (i < 2 ? 0 : 1) && at[i % 2] + at[(i % 2) + 2] <= limit;
    field.setCustomValidity(isRight ? "" : `The region must lie within ${this.view.width} × ${this.view.height} pixels`);
    field.reportValidity();
    if (isRight) this.change(this.list.map((other) => (other === region ? { ...region, at } : other)));
  }

  showNumbers() {
    for (const cell of document.querySelectorAll(".region-numbers")) {
      const numbers = this.numbers.get(Number(cell.dataset.region));
      cell.textContent = numbers ? COLUMNS.map((name) => `${name} ${shortNumber(numbers[name])}`).join(", ") : "not measured";
    }
  }

  drawPlot() {
    const canvas = element("region-plot"), quantity = element("region-quantity").value;
    const lines = this.list.map(({ id }, index) => ({
      values: this.history.map(({ regions }) => regions.find((numbers) => numbers.id === id)?.[quantity] ?? NaN),
      colour: lineColour(index),
    }));
    const seconds = this.history.length ? this.history.at(-1).t - this.history[0].t : 0;
    drawLines(canvas, lines, `${quantity}, last ${Math.round(seconds)} s`);
  }

  csv() {
    const names = ["n", ...COLUMNS], lines = [`time,image,region,${names.join(",")}`];
    for (const { t, image, regions } of this.history) {
      for (const numbers of regions) {
        lines.push([new Date(t * 1000).toISOString(), image, numbers.id, ...names.map((name) => numbers[name] ?? "")].join(","));
      }
    }
    return lines.join("\n") + "\n";
  }

  save() { download("regions.csv", this.csv(), "text/csv"); }

  draw(context, pen) {
    const all = this.drawn ? [...this.list, this.drawn] : this.list;
    all.forEach(({ id, kind, at: [x, y, width, height] }, index) => {
      const one = this.view.toCanvas(x, y), other = this.view.toCanvas(x + width, y + height);
      const [left, top] = [Math.min(one.x, other.x), Math.min(one.y, other.y)];
      const [wide, tall] = [Math.abs(other.x - one.x), Math.abs(other.y - one.y)];
      context.beginPath();
      if (kind === "circle") context.ellipse(left + wide / 2, top + tall / 2, wide / 2, tall / 2, 0, 0, 2 * Math.PI);
      else context.rect(left, top, wide, tall);
      for (const [colour, thickness] of [["#000", 4], [lineColour(index), 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = thickness * pen;
        context.stroke();
      }
      if (!id) return;
      context.font = `${14 * pen}px system-ui, sans-serif`;
      context.fillStyle = lineColour(index);
      context.strokeStyle = "#000";
      context.strokeText(String(id), left + 4 * pen, top + 16 * pen);
      context.fillText(String(id), left + 4 * pen, top + 16 * pen);
    });
  }
}
