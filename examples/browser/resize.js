// Resizing by Pillow's arithmetic: the network was trained on such pixels, and the browser's own
// scaling gives others. Weights are rounded to 22 bits, and the result to 8 bits after each of the
// two passes, across and then down. Pillow 13 goes down first on some tall images, which rounds a
// few pixels to another grey.

const BITS = 22;

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function cubic(x) {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// For every output position: the first input position, and whole-number weights from there on.
function weights(from, to, [reach, filter]) {
  const scale = from / to, stretch = Math.max(scale, 1), support = reach * stretch;
  return Array.from({ length: to }, (_, at) => {
    const center = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const parts = [];
    for (let x = first; x < last; x++) parts.push(filter((x - center + 0.5) / stretch));
    const sum = parts.reduce((a, b) => a + b, 0);
    return [first, parts.map((part) => {
      const value = (part / sum) * 2 ** BITS;
      return Math.trunc(value + (value < 0 ? -0.5 : 0.5));
    })];
  });
}

// One pass over RGB pixels. `step` lies between neighbours along the pass, `line` between lines.
function pass(pixels, table, lines, from, to, result) {
  for (let y = 0; y < lines; y++) {
    for (let x = 0; x < table.length; x++) {
      const [first, parts] = table[x];
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (BITS - 1);
        for (let i = 0; i < parts.length; i++) {
          sum += pixels[y * from.line + (first + i) * from.step + c] * parts[i];
        }
        result[y * to.line + x * to.step + c] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  }
  return result;
}

function nearest({ pixels, width, height }, toWidth, toHeight) {
  const found = new Uint8Array(toWidth * toHeight * 3);
  for (let y = 0; y < toHeight; y++) {
    for (let x = 0; x < toWidth; x++) {
      const row = Math.floor((y + 0.5) * (height / toHeight));
      const column = Math.floor((x + 0.5) * (width / toWidth));
      for (let c = 0; c < 3; c++) {
        found[(y * toWidth + x) * 3 + c] = pixels[(row * width + column) * 3 + c];
      }
    }
  }
  return found;
}

// { pixels, width, height } of RGB bytes, as RGB bytes of another size.
export function resized(image, width, height, interpolation) {
  if (interpolation === "nearest") return nearest(image, width, height);
  const filter = FILTERS[interpolation];
  let { pixels } = image;
  if (width !== image.width) {
    pixels = pass(pixels, weights(image.width, width, filter), image.height,
      { line: image.width * 3, step: 3 }, { line: width * 3, step: 3 },
      new Uint8Array(width * image.height * 3));
  }
  if (height !== image.height) {
    pixels = pass(pixels, weights(image.height, height, filter), width,
      { line: 3, step: width * 3 }, { line: 3, step: width * 3 },
      new Uint8Array(width * height * 3));
  }
  return pixels;
}

// Python's round(): halves go to the even number.
function rounded(value) {
  const down = Math.floor(value);
  return value - down !== 0.5 ? Math.round(value) : down + (down % 2);
}

// The network's input (height x width x 3 bytes) by the rules of export.json: as prepare() in run.py.
export function prepared(image, rule) {
  const [high, wide] = rule.image_size;
  let height = Math.floor(high / rule.crop_pct), width = Math.floor(wide / rule.crop_pct);
  if (rule.crop_mode === "center") {
    if (image.height * width <= image.width * height) {
      width = Math.max(width, Math.floor((height * image.width) / image.height));
    } else {
      height = Math.max(height, Math.floor((width * image.height) / image.width));
    }
  }
  const whole = resized(image, width, height, rule.interpolation);
  const top = rounded((height - high) / 2), left = rounded((width - wide) / 2);
  const found = new Uint8Array(high * wide * 3);
  for (let y = 0; y < high; y++) {
    const start = ((top + y) * width + left) * 3;
    found.set(whole.subarray(start, start + wide * 3), y * wide * 3);
  }
  return found;
}
