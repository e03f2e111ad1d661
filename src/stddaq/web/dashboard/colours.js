// Colours of counts: a table with one entry for each of the 65536 counts, and the patterns of marked pixels.

// Points of each map, dark to bright, as RRGGBB; between them it is linear. viridis and inferno (CC0) have
// evenly spaced brightness, and people who do not see all colours can read them. So is cividis, from blue over
// gray to yellow; the points are not those of its table, but computed: in CIELAB, at t from 0 to 1,
// L = 14 + 77 t, a = 9 - 18 t, b = -34 + 46 t + 68 t².
const MAPS = {
  viridis:
    "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f988b1fa08822a785" +
    "28ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23d8e219ece51bfde725",
  cividis: "0023540e2d5b243761354266454d6b54596e636571727173827d73918972a09670b0a36dc0b068cfbe61dfcb58efd94cfee73b",
  inferno:
    "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754c73e4cd24644db503b" +
    "e45a31eb6628f1731df68013f98e09fb9d07fcac11fbbc21f9cb35f5db4cf2ea69f3f68afcffa4",
  gray: "000000ffffff",
};
export const MAP_NAMES = Object.keys(MAPS);
export const LARGEST = 65532;

// A colour as canvases store it: red in the lowest byte.
const packed = (red, green, blue) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;

// Two colours and the pattern between them: marks differ in more than their colour.
export const MARKS = {
  65535: { name: "saturated", count: "n_saturated", colours: [packed(255, 60, 220), packed(255, 60, 220)] },
  65534: { name: "masked", count: "n_masked", colours: [packed(92, 102, 112), packed(46, 52, 58)] },
  65533: { name: "missing", count: "n_missing", colours: [packed(255, 150, 40), packed(70, 36, 0)] },
};

// Return the colour of a marked pixel at x, y: plain, diagonal stripes, or squares.
export function markColour(count, x, y) {
  const { colours } = MARKS[count];
  if (count === 65534) return colours[((x + y) >> 1) & 1];
  return colours[((x >> 1) ^ (y >> 1)) & 1];
}

// Return the colour at `part` of a map, from 0 to 1.
function colourAt(points, part) {
  const place = Math.min(Math.max(part, 0), 1) * (points.length - 1);
  const i = Math.min(Math.floor(place), points.length - 2), share = place - i;
  const mixed = [0, 1, 2].map((k) => Math.round(points[i][k] + share * (points[i + 1][k] - points[i][k])));
  return packed(...mixed);
}

function pointsOf(name, isInverted) {
  const points = (MAPS[name] ?? MAPS.viridis).match(/../g).map((hex) => parseInt(hex, 16));
  const colours = Array.from({ length: points.length / 3 }, (_, i) => points.slice(3 * i, 3 * i + 3));
  return isInverted ? colours.reverse() : colours;
}

// Return where a value lies between the levels, from 0 to 1, on a scale.
export function placeOf(value, { scale, low, high }) {
  const part = Math.min(Math.max((value - low) / (high - low), 0), 1);
  if (scale === "sqrt") return Math.sqrt(part);
  if (scale === "log") {
    const span = Math.min(Math.max(high - low, 100), 1e6);
    return Math.log1p(part * span) / Math.log1p(span);
  }
  return part;
}

const STEPS = 1024;

// Return 65536 colours for `look`: {map, inverted, scale, low, high, marks}, of counts that are values
// divided by `step`, without `offset`.
export function colourTable(look, step, offset) {
  const points = pointsOf(look.map, look.inverted);
  const colours = Uint32Array.from({ length: STEPS + 1 }, (_, i) => colourAt(points, i / STEPS));
  const table = new Uint32Array(65536);
  for (let count = 0; count <= LARGEST; count++) {
    table[count] = colours[Math.round(placeOf(count * step + offset, look) * STEPS)];
  }
  table[65533] = table[65534] = packed(0, 0, 0);
  table[65535] = colours[STEPS];
  return table;
}

// Draw the colours of a look from bottom to top. They are the same on every scale; the labels are not.
export function drawBar(canvas, look) {
  const context = canvas.getContext("2d"), points = pointsOf(look.map, look.inverted);
  const image = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
  for (let y = 0; y < canvas.height; y++) {
    pixels.fill(colourAt(points, 1 - y / (canvas.height - 1)), y * canvas.width, (y + 1) * canvas.width);
  }
  context.putImageData(image, 0, 0);
}
