// Correcting the label of an image: draw, move, reshape and erase regions. Points are pixels of the image; the pointer's
// are by edges, see `byEdges`, and the half pixel of polygons does not matter where one is taken.

const NEAR = 9;  // screen pixels within which a corner is taken
const UNDO = 50;

function inside(points, [x, y]) {
  let found = false;
  for (let k = 0, before = points.length - 1; k < points.length; before = k++) {
    const [[ax, ay], [bx, by]] = [points[k], points[before]];
    if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) found = !found;
  }
  return found;
}

function enclosed(points) {
  return Math.abs(points.reduce((sum, [x, y], k) => {
    const [nx, ny] = points[(k + 1) % points.length];
    return sum + x * ny - y * nx;
  }, 0)) / 2;
}

// One image's regions while they are edited. `changed(regions)` is called after every finished change.
class RegionEditor {
  constructor(regions, [width, height], changed) {
    this.regions = structuredClone(regions);
    Object.assign(this, { limit: [width, height], changed, tool: "move", chosen: -1, pending: null, grip: null });
    this.history = [];
  }

  bounded([x, y]) {
    return [Math.max(0, Math.min(this.limit[0], x)), Math.max(0, Math.min(this.limit[1], y))];
  }
  finish() {
    for (const one of this.regions) one.points = one.points.map((point) => point.map((v) => Math.round(v * 10) / 10));
    this.changed(this.regions);
  }
  remember() {
    this.history = [...this.history, structuredClone(this.regions)].slice(-UNDO);
  }
  undo() {
    if (this.pending) { this.pending = null; return; }
    if (!this.history.length) return;
    this.regions = this.history.pop();
    this.chosen = -1;
    this.finish();
  }
  erase() {
    if (this.chosen < 0) return;
    this.remember();
    this.regions.splice(this.chosen, 1);
    this.chosen = -1;
    this.finish();
  }
  choose(tool) {
    Object.assign(this, { tool, pending: null });
    if (tool !== "move") this.chosen = -1;
  }

  // The pointer goes down at `point`; `near` is NEAR in pixels of the image. Returns whether the editor takes it.
  press(point, near) {
    point = this.bounded(point);
    if (this.tool === "rectangle") { this.pending = [point, point]; return true; }
    if (this.tool === "polygon") {
      const closes = this.pending?.length > 3 && Math.hypot(point[0] - this.pending[0][0], point[1] - this.pending[0][1]) < near;
      if (closes) this.closePolygon();
      else this.pending = [...(this.pending?.slice(0, -1) ?? []), point, point];
      return true;
    }
    const chosen = this.regions[this.chosen];
    const corner = chosen?.points.findIndex(([x, y]) => Math.hypot(x - point[0], y - point[1]) < near) ?? -1;
    if (corner < 0) {
      // The smallest region under the pointer, or one could never reach a region inside another.
      const under = this.regions.map((one, k) => [enclosed(corners(one)), k])
        .filter(([, k]) => inside(corners(this.regions[k]), point)).sort((a, b) => a[0] - b[0]);
      this.chosen = under.length ? under[0][1] : -1;
      if (this.chosen < 0) return false;
    }
    this.grip = { corner, from: point, points: structuredClone(this.regions[this.chosen].points), moved: false };
    return true;
  }
  drag(point) {
    point = this.bounded(point);
    if (this.pending) { this.pending[this.pending.length - 1] = point; return; }
    const { grip } = this;
    if (!grip) return;
    if (!grip.moved) this.remember();
    grip.moved = true;
    const by = [point[0] - grip.from[0], point[1] - grip.from[1]];
    for (const axis of [0, 1]) {  // a moved region keeps its shape at the border
      const places = grip.points.map((one) => one[axis]);
      by[axis] = Math.max(-Math.min(...places), Math.min(this.limit[axis] - Math.max(...places), by[axis]));
    }
    this.regions[this.chosen].points = grip.points.map((one, k) =>
      grip.corner < 0 ? [one[0] + by[0], one[1] + by[1]] : k === grip.corner ? point : one);
  }
  release() {
    if (this.grip?.moved) this.finish();
    this.grip = null;
    if (this.tool === "rectangle" && this.pending) {
      const points = this.pending;
      this.pending = null;
      if (enclosed(corners({ shape: "rectangle", points })) >= 4) this.add({ shape: "rectangle", points });
    }
  }
  closePolygon() {
    const points = (this.pending ?? []).slice(0, -1);
    this.pending = null;
    const byCentres = points.map(([x, y]) => [x - 0.5, y - 0.5]);
    if (points.length > 2 && enclosed(points) >= 4) this.add({ shape: "polygon", points: byCentres });
  }
  add(region) {
    this.remember();
    this.chosen = this.regions.push(region) - 1;
    this.finish();
  }
}
