// Messages with images: header, LZ4 block, and the two halves of the counts.

const MAX_HEADER_BYTES = 65536;

// Return {header, counts} of a binary message. Throws an Error if it is not one.
export function decodeMessage(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  if (length > MAX_HEADER_BYTES || 4 + length > buffer.byteLength) throw new Error("message with a wrong header");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (header.v !== 1 || header.codec !== "lz4" || !header.planes) throw new Error("message of another version");
  const [height, width] = header.size, n = height * width;
  const planes = new Uint8Array(2 * n);
  decompress(new Uint8Array(buffer, 4 + length), planes);
  const counts = new Uint16Array(n);
  for (let i = 0; i < n; i++) counts[i] = (planes[i] << 8) | planes[n + i];
  return { header, counts };
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
