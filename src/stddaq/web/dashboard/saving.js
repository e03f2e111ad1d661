// Files of the shown image: a picture as it is seen, and its counts.

import { LARGEST } from "./colours.js";
import { download } from "./page.js";

const MARGIN = 8;

// Save the canvas with the colour bar and a line of text below it.
export function savePicture(canvas, bar, [high, low], title, name) {
  const letters = Math.max(14, Math.round(canvas.height / 45)), foot = 2 * letters, side = 7 * letters;
  const whole = Object.assign(document.createElement("canvas"), { width: canvas.width + side, height: canvas.height + foot });
  const context = whole.getContext("2d"), left = canvas.width + MARGIN;
  context.fillStyle = "#0f151c";
  context.fillRect(0, 0, whole.width, whole.height);
  context.drawImage(canvas, 0, 0);
  context.drawImage(bar, left, 2 * letters, letters, canvas.height - 4 * letters);
  context.fillStyle = "#fff";
  context.font = `${letters}px system-ui, sans-serif`;
  context.fillText(high, left, 1.5 * letters);
  context.fillText(low, left, canvas.height - 0.5 * letters);
  context.fillText(title, MARGIN, canvas.height + 1.4 * letters);
  whole.toBlob((blob) => download(`${name}.png`, blob), "image/png");
}

// Return a TIFF file of the counts: uint16 where values are counts, else float32, with NaN for marks.
export function tiffOf({ counts, header }) {
  const [height, width] = header.size, isPlain = header.scale === 1 && header.offset === 0;
  const data = isPlain ? counts : Float32Array.from(counts, (count) => (count > LARGEST ? NaN : count * header.scale + header.offset));
  const tags = [
    [256, 4, width], [257, 4, height], [258, 3, isPlain ? 16 : 32], [259, 3, 1], [262, 3, 1], [273, 4, 0],
    [277, 3, 1], [278, 4, height], [279, 4, data.byteLength], [339, 3, isPlain ? 1 : 3],
  ];
  const start = 8 + 2 + 12 * tags.length + 4, file = new ArrayBuffer(start + data.byteLength), view = new DataView(file);
  view.setUint32(0, 0x002a4949, true);
  view.setUint32(4, 8, true);
  view.setUint16(8, tags.length, true);
  tags.forEach(([tag, type, value], i) => {
    const at = 10 + 12 * i;
    view.setUint16(at, tag, true);
    view.setUint16(at + 2, type, true);
    view.setUint32(at + 4, 1, true);
    view.setUint32(at + 8, tag === 273 ? start : value, true);
  });
  new Uint8Array(file, start).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return file;
}
