// Messages with images: a header, and counts, as an LZ4 block of their two halves or as a JPEG picture with marks.

import { LARGEST } from "./colours.js";

const MAX_HEADER_BYTES = 65536;
// Bytes from which on a call is faster than a loop.
const LONG = 64;

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

// Of the last image; a new one for each would keep the garbage collector busy.
let planes = new Uint8Array(0);

function exactCounts(header, payload) {
  if (header.codec !== "lz4" || !header.planes) throw new Error("message of another version");
  const n = header.size[0] * header.size[1], counts = new Uint16Array(n);
  if (planes.length !== 2 * n) planes = new Uint8Array(2 * n);
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

// Decode an LZ4 block into `target`, which it must fill exactly. Most of its sequences are short: calls for each
// of them would take three times as long as these loops.
export function decompress(source, target) {
  const end = source.length, size = target.length;
  let from = 0, to = 0;
  while (from < end) {
    const token = source[from++];
    let length = token >> 4, byte = 255;
    if (length === 15) for (; byte === 255; length += byte) byte = source[from++];
    if (!(from + length <= end && to + length <= size)) throw new Error("damaged image");
    if (length > LONG) {
      target.set(source.subarray(from, from + length), to);
      from += length;
      to += length;
    } else for (const until = from + length; from < until;) target[to++] = source[from++];
    if (from >= end) break;
    const back = source[from] | (source[from + 1] << 8);
    from += 2;
    length = token & 15;
    byte = 255;
    if (length === 15) for (; byte === 255; length += byte) byte = source[from++];
    length += 4;
    if (!(back > 0 && back <= to && to + length <= size)) throw new Error("damaged image");
    if (length > LONG && back >= length) {
      target.copyWithin(to, to - back, to - back + length);
      to += length;
    } else if (length > LONG && back === 1) {
      target.fill(target[to - 1], to, to + length);
      to += length;
    } else for (const until = to + length; to < until; to++) target[to] = target[to - back];
  }
  if (to !== size) throw new Error("damaged image");
}
