// Pictures of the mask inspector: an image and its heatmaps are decoded once; colours, threshold and outlines are
// drawn on a canvas. Heatmaps are Uint8Array [height * width]; places are pixels of the image.

const GRID = 512;  // side of the grid on which the official metric finds regions
const FULL = 64;  // label value from which one annotator's colour shows in full
const FAINT = 0.4;  // how strongly values up to the threshold show, compared with those above
const PIXELS = 4;  // screen pixels of an image pixel from which pixels are shown as squares
const MOST = 40;  // the closest zoom

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An answer of `MaskInspector._do_image` with its bytes -> what is drawn.
async function decode(answer, [picture, ...maps]) {
  const heatmap = async (bytes, n) => {
    if (!answer.sizes[n]) return null;
    const [width, height] = answer.sizes[n];
    return { width, height, values: await inflate(bytes) };
  };
  const bitmap = picture.byteLength ? createImageBitmap(new Blob([picture])).catch(() => null) : null;
  const [image, label, ...predicted] = await Promise.all([bitmap, ...maps.map(heatmap)]);
  if (picture.byteLength && !image) answer.problems.push("The browser cannot decode the image file; replace it.");
  return { ...answer, image, label, predicted };
}

// RGBA of every heatmap value as 32-bit numbers; `strength` of a value is 0..1.
function colourTable(palette, strength) {
  const bytes = new Uint8ClampedArray(1024);
  for (let value = 0; value < 256; value++) bytes.set([...palette[value], Math.round(255 * strength(value))], 4 * value);
  return new Uint32Array(bytes.buffer);
}

const predictionTable = (palette, threshold, opacity) =>
  colourTable(palette, (value) => opacity * (value > threshold ? 1 : FAINT * value / 255));
const labelTable = (palette, opacity) => colourTable(palette, (value) => opacity * Math.min(value / FULL, 1));

// 0 neither, 1 false, 2 missed, 3 hit at every pixel of the label.
function difference(predicted, label, threshold) {
  const { width, height, values } = label, kinds = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor((y + 0.5) * predicted.height / height) * predicted.width;
    for (let x = 0; x < width; x++) {
      const column = Math.floor((x + 0.5) * predicted.width / width);
      kinds[y * width + x] = (predicted.values[row + column] > threshold) + 2 * (values[y * width + x] > 0);
    }
  }
  return { width, height, values: kinds };
}

function paint({ width, height, values }, table) {
  const canvas = new OffscreenCanvas(width, height), pixels = new Uint32Array(width * height);
  for (let k = 0; k < pixels.length; k++) pixels[k] = table[values[k]];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
  return canvas;
}

// The place that all panels show: `zoom` 1 fits the image, `x` and `y` are the centre as fractions of its sides.
class Place {
  constructor() { this.reset(); }
  reset() { Object.assign(this, { zoom: 1, x: 0.5, y: 0.5 }); }
  // Screen pixels of an image pixel, and where its corner lies, in a frame [width, height].
  of([width, height], [w, h]) {
    const scale = Math.min(width / w, height / h) * this.zoom;
    const centre = (at, side, length) => {
      const half = Math.min(0.5, side / 2 / scale / length);
      return side / 2 - Math.max(half, Math.min(1 - half, at)) * length * scale;
    };
    return { scale, left: centre(this.x, width, w), top: centre(this.y, height, h) };
  }
  // Zoom by a factor so that the point [px, py] of the frame stays where it is.
  zoomAt(factor, [px, py], frame, size) {
    const { scale, left, top } = this.of(frame, size), before = this.zoom;
    this.zoom = Math.max(1, Math.min(MOST, this.zoom * factor));
    const now = scale * this.zoom / before;
    this.x = ((px - left) / scale + (frame[0] / 2 - px) / now) / size[0];
    this.y = ((py - top) / scale + (frame[1] / 2 - py) / now) / size[1];
    this.settle(frame, size);
  }
  pan([dx, dy], frame, size) {
    const { scale } = this.of(frame, size);
    this.x -= dx / scale / size[0];
    this.y -= dy / scale / size[1];
    this.settle(frame, size);
  }
  // Forget what lies beyond the border, or the way back would begin with a standstill.
  settle(frame, size) {
    const { scale, left, top } = this.of(frame, size);
    this.x = (frame[0] / 2 - left) / scale / size[0];
    this.y = (frame[1] / 2 - top) / scale / size[1];
  }
}

function tracePath(context, points, close = true) {
  context.beginPath();
  points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (close) context.closePath();
}

// A line with a dark rim, so that it shows on any background.
function outline(context, points, colour, { width = 3, dash = [], close = true } = {}) {
  tracePath(context, points, close);
  context.setLineDash(dash);
  context.lineJoin = "round";
  for (const [tint, thickness] of [["#000", width + 2], [colour, width]]) {
    context.strokeStyle = tint;
    context.lineWidth = thickness;
    context.stroke();
  }
}

// The corners of a region as drawn: two opposite ones of a rectangle become four.
const corners = ({ shape, points }) => {
  if (shape !== "rectangle") return points;
  const [[x0, y0], [x1, y1]] = points;
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
};

// Vertices of polygons count from the centres of pixels, corners of rectangles from their edges, as the screen does.
const byEdges = ({ shape }, [x, y]) => (shape === "rectangle" ? [x, y] : [x + 0.5, y + 0.5]);

// One picture; `layer` is a painted heatmap or null, `outlines` are [status, flat points on the grid], `drawn` are
// regions of annotators or a correction, each with `colour`, maybe `name` and `handles`.
function drawPicture(canvas, size, place, { image, layer, outlines, drawn, colours, pending }) {
  const context = canvas.getContext("2d"), sharp = window.devicePixelRatio || 1;
  const frame = [canvas.width / sharp, canvas.height / sharp], { scale, left, top } = place.of(frame, size);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.imageSmoothingEnabled = scale * sharp < PIXELS;
  context.imageSmoothingQuality = "medium";  // "high" takes five times as long
  const box = [left, top, size[0] * scale, size[1] * scale];
  if (image) context.drawImage(image, ...box);
  else {
    context.fillStyle = "#8888";
    context.fillRect(...box);
  }
  if (layer) context.drawImage(layer, ...box);
  const onScreen = ([x, y]) => [left + x * scale, top + y * scale];
  for (const [status, flat] of outlines) {
    const points = [];
    for (let k = 0; k < flat.length; k += 2)
      points.push(onScreen([(flat[k] + 0.5) * size[0] / GRID, (flat[k + 1] + 0.5) * size[1] / GRID]));
    const small = status === "small", dash = status === "missed" ? [9, 9] : [];
    outline(context, points, colours[status], { width: small ? 1 : 3, dash });
  }
  for (const region of drawn) {
    const points = corners(region).map((point) => onScreen(byEdges(region, point)));
    outline(context, points, region.colour, { width: region.handles ? 2.5 : 1.5 });
    if (region.handles) for (const [x, y] of points) square(context, x, y, region.colour);
    if (region.name) caption(context, region.name, points.reduce((a, b) => (b[1] < a[1] ? b : a)));
  }
  if (pending) outline(context, pending.map(onScreen), "#fff", { width: 1.5, close: false });
}

function square(context, x, y, colour) {
  context.setLineDash([]);
  context.lineWidth = 1;
  context.fillStyle = colour;
  context.strokeStyle = "#000";
  context.fillRect(x - 4, y - 4, 8, 8);
  context.strokeRect(x - 4, y - 4, 8, 8);
}

function caption(context, text, [x, y]) {
  context.font = "bold 13px sans-serif";
  context.setLineDash([]);
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.fillStyle = "#fff";
  context.strokeText(text, x + 4, y + 15);
  context.fillText(text, x + 4, y + 15);
}
