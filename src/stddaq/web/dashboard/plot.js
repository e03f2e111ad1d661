// Line plots on a canvas, in the colours of the theme at the time of drawing.

const LINE_COLOURS = ["#4c9be8", "#e8a33d", "#3fae7a", "#d16ba5", "#9a86e0", "#c9b037", "#6cc4c9", "#b0785a"];
const MARGIN = 4;

export const lineColour = (index) => LINE_COLOURS[index % LINE_COLOURS.length];

// Draws on a canvas at most once in `period` ms, the last time after the last call, and when its size changes.
export class PacedDrawing {
  constructor(canvas, period, draw) {
    Object.assign(this, { canvas, period, draw, drawnAt: -Infinity, timer: 0 });
    new ResizeObserver(() => this.now()).observe(canvas);
  }

  soon() {
    this.timer ||= setTimeout(() => this.now(), Math.max(0, this.drawnAt + this.period - performance.now()));
  }

  now() {
    clearTimeout(this.timer);
    this.timer = 0;
    // A canvas that is not shown is drawn when it gets its size.
    if (!this.canvas.clientWidth) return;
    this.drawnAt = performance.now();
    this.draw();
  }
}

// Return a context for a canvas whose pixels are those of the screen, and its size in CSS pixels.
export function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = `${style.fontSize} ${style.fontFamily}`;
  return { context, width, height, text: style.color };
}

// Draw `lines`: [{values, colour}], all from left to right. Values that are NaN leave gaps.
export function drawLines(canvas, lines, label = "") {
  const { context, width, height, text } = prepared(canvas);
  let low = Infinity, high = -Infinity;
  for (const { values } of lines) for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(high >= low)) return;
  if (high === low) { low -= 0.5; high += 0.5; }
  const letters = Number.parseFloat(context.font) || 12, room = height - 2 * MARGIN;
  for (const { values, colour } of lines) {
    context.strokeStyle = colour;
    context.beginPath();
    let isGap = true;
    for (let i = 0; i < values.length; i++) {
      if (Number.isNaN(values[i])) { isGap = true; continue; }
      const x = values.length > 1 ? (i / (values.length - 1)) * width : width / 2;
      const y = MARGIN + room * (1 - (values[i] - low) / (high - low));
      if (isGap) context.moveTo(x, y);
      else context.lineTo(x, y);
      isGap = false;
    }
    context.stroke();
  }
  context.fillStyle = text;
  context.fillText(short(high), 2, letters);
  context.fillText(short(low), 2, height - 3);
  context.textAlign = "right";
  context.fillText(label, width - 2, letters);
}

const short = (value) => Number(value.toPrecision(4)).toString();
