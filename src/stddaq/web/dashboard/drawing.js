// What is drawn over the image: beam centre, rings, crosses; and how the image is turned. Kept per detector.

import { element } from "./page.js";
import { keep, kept } from "./settings.js";

const NOTHING = { centre: null, rings: [], crosses: [], turns: 0, isMirrored: false };
const MAX_RINGS = 16, CROSS = 12;

export class Drawing {
  constructor(view, redraw) {
    Object.assign(this, { view, redraw, content: NOTHING });
    const turnings = { rotate: () => view.turn(), flip: () => view.flip(), transpose: () => view.transpose() };
    for (const [id, run] of Object.entries(turnings)) {
      element(id).addEventListener("click", () => {
        run();
        this.change({ turns: view.turns, isMirrored: view.isMirrored });
      });
    }
    for (const id of ["centre-x", "centre-y", "rings"]) element(id).addEventListener("change", () => this.read());
    element("add-cross").addEventListener("click", () => this.pick("add-cross", ({ x, y }) => this.change({ crosses: [...this.content.crosses, [x, y]] })));
    element("set-centre").addEventListener("click", () => this.pick("set-centre", ({ x, y }) => this.change({ centre: [x, y] })));
    element("no-drawing").addEventListener("click", () => this.change({ centre: null, rings: [], crosses: [] }));
  }

  follow(detector) {
    this.key = `drawing.${detector}`;
    this.content = { ...NOTHING, ...kept(this.key, {}) };
    this.view.setOrientation(this.content.turns, this.content.isMirrored);
    this.showFields();
  }

  // The next click on the image is the place.
  pick(id, use) {
    const isOn = this.view.tool?.kind === id;
    for (const other of ["add-cross", "set-centre"]) element(other).setAttribute("aria-pressed", String(!isOn && other === id));
    const end = (pixel) => {
      this.pick(id, use);
      use(pixel);
    };
    this.view.tool = isOn ? null : { kind: id, begin: () => {}, move: () => {}, end };
  }

  read() {
    const [x, y] = ["centre-x", "centre-y"].map((id) => element(id).value);
    const rings = element("rings").value.split(/[\s,;]+/).map(Number).filter((radius) => radius > 0).slice(0, MAX_RINGS);
    this.keep({ centre: x === "" || y === "" ? null : [Number(x), Number(y)], rings });
  }

  change(part) {
    this.keep(part);
    this.showFields();
  }

  keep(part) {
    this.content = { ...this.content, ...part };
    keep(this.key, this.content);
    this.redraw();
  }

  showFields() {
    const { centre, rings } = this.content;
    element("centre-x").value = centre?.[0] ?? "";
    element("centre-y").value = centre?.[1] ?? "";
    element("rings").value = rings.join(", ");
  }

  draw(context, pen) {
    const { centre, rings, crosses } = this.content, { zoom } = this.view;
    context.beginPath();
    for (const [x, y] of centre ? [centre, ...crosses] : crosses) {
      const at = this.view.toCanvas(x + 0.5, y + 0.5), arm = CROSS * pen;
      context.moveTo(at.x - arm, at.y);
      context.lineTo(at.x + arm, at.y);
      context.moveTo(at.x, at.y - arm);
      context.lineTo(at.x, at.y + arm);
    }
    for (const radius of centre ? rings : []) {
      const at = this.view.toCanvas(centre[0] + 0.5, centre[1] + 0.5);
      context.moveTo(at.x + radius * zoom, at.y);
      context.arc(at.x, at.y, radius * zoom, 0, 2 * Math.PI);
    }
    for (const [colour, thickness] of [["#000", 3], ["#fff", 1.2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness * pen;
      context.stroke();
    }
  }
}
