// Messages with images: a header, and counts, as an LZ4 block of their two halves or as a JPEG picture with marks.

import { LARGEST } from "./colours.js";

const MAX_HEADER_BYTES = 65536;

// Return {header, counts} of a binary message. Throws an Error if it is not one.
export async function decodeMessage(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  if (length > MAX_HEADER_BYTES || 4 + length > buffer.byteLength) throw new Error("message with a wrong header");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (header.v !== 1) throw new Error("message of another version");
  const payload = new Uint8Array(buffer, 4 + length);
  const counts = header.codec === "jpeg" ? await quickCounts(header, payload) : exactCounts(header, payload);
  return { header, counts };
}

function exactCounts(header, payload) {
  if (header.codec !== "lz4" || !header.planes) throw new Error("message of another version");
  const n = header.size[0] * header.size[1], planes = new Uint8Array(2 * n), counts = new Uint16Array(n);
  decompress(payload, planes);
  for (let i = 0; i < n; i++) counts[i] = (planes[i] << 8) | planes[n + i];
  return counts;
}

// The grey values are roots of the counts, so that dark pixels have finer steps.
async function quickCounts(header, payload) {
  const [height, width] = header.size, n = height * width, marks = new Uint8Array(n), counts = new Uint16Array(n);
  const picture = await createImageBitmap(new Blob([payload.subarray(0, header.jpeg_bytes)], { type: "image/jpeg" }));
  if (picture.width !== width || picture.height !== height) throw new Error("damaged image");
  decompress(payload.subarray(header.jpeg_bytes), marks);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  picture.close();
  const { data } = context.getImageData(0, 0, width, height);
  for (let i = 0; i < n; i++) counts[i] = marks[i] ? LARGEST + marks[i] : data[4 * i] ** 2;
  return counts;
}

// Decode an LZ4 block into `target`, which it must fill exactly.
export function decompress(source, target) {
  let from = 0, to = 0;
  const more = (length) => {
    if (length !== 15) return length;
    let byte;
    do { byte = source[from++]; length += byte; } while (byte === 255);
    return length;
  };
  while (from < source.length) {
    const token = source[from++];
    const literals = more(token >> 4);
    if (from + literals > source.length || to + literals > target.length) throw new Error("damaged image");
    target.set(source.subarray(from, from + literals), to);
    from += literals;
    to += literals;
    if (from >= source.length) break;
    const back = source[from] | (source[from + 1] << 8);
    from += 2;
    const length = more(token & 15) + 4;
    if (back === 0 || back > to || to + length > target.length) throw new Error("damaged image");
    if (back >= length) target.copyWithin(to, to - back, to - back + length);
    else for (let i = 0; i < length; i++) target[to + i] = target[to + i - back];
    to += length;
  }
  if (to !== target.length) throw new Error("damaged image");
}
