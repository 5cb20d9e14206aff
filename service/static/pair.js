// Two images with their matches on one canvas; each image is zoomed and panned by itself.

const GAP = 12;
const IN = "#19c3b2";
const OUT = "#ff7a45";
const PICK = "#ffe14d";
const WIDE = 640;
const MOST_ZOOM = 60;

export class PairView {
  /** `onpick(index or -1)` is told which match is picked out. */
  constructor(canvas, onpick) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onpick = onpick;
    this.show = { lines: true, outliers: true, points: true };
    this.panes = [0, 1].map(() => ({ bitmap: null, size: null, zoom: 1, cx: 0, cy: 0, x: 0, y: 0, w: 0, h: 0 }));
    this.result = null;
    this.hovered = this.picked = -1;
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.arrange()).observe(canvas.parentElement);
    addEventListener("resize", () => this.arrange());
  }

  /** Show an image; null bitmap where the browser cannot read it. */
  setImage(index, bitmap) {
    this.result = null;
    this.hovered = this.picked = -1;
    Object.assign(this.panes[index], { bitmap, size: bitmap ? [bitmap.width, bitmap.height] : null });
    this.reset();
  }

  /** Show the document of a match; null for none. */
  setResult(found) {
    this.result = found;
    this.hovered = this.picked = -1;
    if (found) {
      let changed = false;
      this.panes.forEach((pane, index) => {
        const size = found[`image${index}`].image_size;
        changed ||= pane.size?.[0] !== size[0] || pane.size?.[1] !== size[1];
        pane.size = size;
      });
      if (changed) this.reset();
      const used = [new Set(), new Set()];
      for (const match of found.matches) match.forEach((row, index) => used[index].add(row));
      this.single = used.map((rows, index) => found[`image${index}`].keypoints.filter((_, row) => !rows.has(row)));
    }
    this.draw();
  }

  reset() {
    for (const pane of this.panes) {
      pane.zoom = 1;
      if (pane.size) [pane.cx, pane.cy] = pane.size.map((side) => side / 2);
    }
    this.arrange();
  }

  arrange() {
    const width = this.canvas.parentElement.clientWidth;
    if (!width) return; // in a tab that is not shown
    const wide = width >= WIDE;
    const shape = (pane) => (pane.size ? pane.size[1] / pane.size[0] : 0);
    const side = (width - GAP) / 2;
    const [first, second] = this.panes;
    this.small = !wide;
    let height;
    if (wide) {
      height = Math.max(200, Math.min(side * Math.max(shape(first), shape(second), 0.4), innerHeight * 0.72));
      Object.assign(first, { x: 0, y: 0, w: side, h: height });
      Object.assign(second, { x: side + GAP, y: 0, w: side, h: height });
    } else {
      const heights = this.panes.map((pane) => Math.max(110, Math.min(width * shape(pane), innerHeight * 0.45)));
      Object.assign(first, { x: 0, y: 0, w: width, h: heights[0] });
      Object.assign(second, { x: 0, y: heights[0] + GAP, w: width, h: heights[1] });
      height = heights[0] + GAP + heights[1];
    }
    this.ratio = Math.min(devicePixelRatio || 1, 3);
    const [w, h] = [Math.round(width * this.ratio), Math.round(height * this.ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    this.canvas.style.height = `${height}px`;
    for (const pane of this.panes) this.clamp(pane);
    this.draw();
  }

  scale(pane) {
    return pane.zoom * Math.min(pane.w / pane.size[0], pane.h / pane.size[1]);
  }

  clamp(pane) {
    if (!pane.size) return;
    const scale = this.scale(pane);
    const within = (centre, side, room) =>
      side * scale <= room ? side / 2 : Math.min(Math.max(centre, room / scale / 2), side - room / scale / 2);
    pane.cx = within(pane.cx, pane.size[0], pane.w);
    pane.cy = within(pane.cy, pane.size[1], pane.h);
    this.canvas.classList.toggle("zoomed", this.panes.some((one) => one.zoom > 1));
  }

  /** Where a keypoint is on the canvas: (0, 0) is the centre of the top-left pixel, so its corner is at -0.5. */
  place(pane, [x, y]) {
    const scale = this.scale(pane);
    return [pane.x + pane.w / 2 + (x + 0.5 - pane.cx) * scale, pane.y + pane.h / 2 + (y + 0.5 - pane.cy) * scale];
  }

  inside(pane, [x, y]) {
    return x >= pane.x && x <= pane.x + pane.w && y >= pane.y && y <= pane.y + pane.h;
  }

  ends(index) {
    const rows = this.result.matches[index];
    return this.panes.map((pane, side) => this.place(pane, this.result[`image${side}`].keypoints[rows[side]]));
  }

  /** Whether a match is drawn: both of its ends are in view. */
  visible(index, ends) {
    if (!this.show.outliers && !this.result.inliers[index] && this.result.status === "ok") return false;
    return ends.every((end, side) => this.inside(this.panes[side], end));
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
    });
  }

  paint() {
    const { context } = this;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.panes.forEach((pane, side) => {
      if (!pane.size) return;
      context.save();
      context.beginPath();
      context.rect(pane.x, pane.y, pane.w, pane.h);
      context.clip();
      const [x, y] = this.place(pane, [-0.5, -0.5]);
      const scale = this.scale(pane);
      context.imageSmoothingEnabled = scale < 4;
      if (pane.bitmap) context.drawImage(pane.bitmap, x, y, pane.size[0] * scale, pane.size[1] * scale);
      else {
        context.fillStyle = "#2a333b";
        context.fillRect(x, y, pane.size[0] * scale, pane.size[1] * scale);
      }
      if (this.result && this.show.points) this.dots(this.single[side].map((p) => this.place(pane, p)), "#ffffffb0", this.small ? 1 : 1.4);
      context.restore();
    });
    if (this.result) this.paintMatches();
  }

  paintMatches() {
    const { context, result } = this;
    const known = result.status === "ok";
    const lines = result.matches.map((_, index) => this.ends(index));
    let chosen = this.picked >= 0 ? this.picked : this.hovered;
    this.drawn = lines.map((ends, index) => (this.visible(index, ends) ? index : -1)).filter((index) => index >= 0);
    if (!this.drawn.includes(chosen)) chosen = -1; // out of view: nothing to stand out from the others
    for (const inlier of [false, true]) {
      const rows = this.drawn.filter((index) => (known ? result.inliers[index] : true) === inlier);
      const colour = inlier ? IN : OUT;
      const alpha = rows.length > 250 ? 0.4 : rows.length > 100 ? 0.55 : 0.8;
      context.globalAlpha = chosen >= 0 ? 0.12 : alpha;
      if (this.show.lines) {
        context.beginPath();
        for (const index of rows) {
          context.moveTo(...lines[index][0]);
          context.lineTo(...lines[index][1]);
        }
        context.setLineDash(inlier ? [] : [6, 4]); // told apart without colours, too
        context.lineWidth = 1;
        context.strokeStyle = colour;
        context.stroke();
        context.setLineDash([]);
      }
      context.globalAlpha = chosen >= 0 ? 0.4 : 1;
      this.dots(rows.flatMap((index) => lines[index]), colour, this.small ? 1.6 : 2.2);
    }
    context.globalAlpha = 1;
    if (chosen >= 0) this.paintChosen(lines[chosen]);
  }

  paintChosen(ends) {
    const { context } = this;
    for (const [width, colour] of [[5, "#000a"], [2.5, PICK]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      context.moveTo(...ends[0]);
      context.lineTo(...ends[1]);
      for (const end of ends) {
        context.moveTo(end[0] + 7, end[1]);
        context.arc(...end, 7, 0, 7);
      }
      context.stroke();
    }
  }

  dots(points, colour, radius) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    for (const [x, y] of points) {
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 7);
    }
    context.fill();
  }

  /** The match that is drawn nearest to a point of the canvas, or -1. */
  nearest(x, y, reach) {
    let [best, found] = [reach, -1];
    for (const index of this.result && this.drawn ? this.drawn : []) {
      for (const end of this.ends(index)) {
        const distance = Math.hypot(end[0] - x, end[1] - y);
        if (distance < best) [best, found] = [distance, index];
      }
    }
    if (found >= 0 || !this.show.lines) return found;
    best = reach / 3;
    for (const index of this.result && this.drawn ? this.drawn : []) {
      const [[ax, ay], [bx, by]] = this.ends(index);
      const along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2 || 1);
      const t = Math.min(Math.max(along, 0), 1);
      const distance = Math.hypot(ax + t * (bx - ax) - x, ay + t * (by - ay) - y);
      if (distance < best) [best, found] = [distance, index];
    }
    return found;
  }

  choose(index, sticky) {
    if (sticky) this.picked = this.hovered = index;
    else if (this.hovered === index) return;
    else this.hovered = index;
    this.onpick(this.picked >= 0 ? this.picked : this.hovered);
    this.draw();
  }

  /** Pick the next (or previous) match that is in view. */
  step(by) {
    if (!this.drawn?.length) return;
    const at = this.drawn.indexOf(this.picked);
    const next = at < 0 ? (by > 0 ? 0 : -1) : at + by;
    this.choose(this.drawn.at(next % this.drawn.length), true);
  }

  zoom(pane, factor, x = pane.x + pane.w / 2, y = pane.y + pane.h / 2) {
    if (!pane?.size) return;
    const before = this.scale(pane);
    pane.zoom = Math.min(Math.max(pane.zoom * factor, 1), MOST_ZOOM);
    const after = this.scale(pane);
    // what is under the pointer stays there
    pane.cx += (x - pane.x - pane.w / 2) * (1 / before - 1 / after);
    pane.cy += (y - pane.y - pane.h / 2) * (1 / before - 1 / after);
    this.clamp(pane);
    this.draw();
  }

  pan(pane, dx, dy) {
    if (!pane?.size) return;
    pane.cx -= dx / this.scale(pane);
    pane.cy -= dy / this.scale(pane);
    this.clamp(pane);
    this.draw();
  }

  listen() {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const paneAt = (point) => this.panes.find((pane) => this.inside(pane, point));
    const { canvas, pointers } = this;
    canvas.addEventListener("wheel", (event) => {
      const point = at(event);
      const pane = paneAt(point);
      if (!pane?.size) return;
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 20 : 1;
      this.zoom(pane, Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), ...point);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      const point = at(event);
      pointers.set(event.pointerId, { point, began: point, pane: paneAt(point), moved: pointers.size > 0 });
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const point = at(event);
      const held = pointers.get(event.pointerId);
      if (!held) {
        if (this.picked < 0) this.choose(this.nearest(...point, 12), false);
        return;
      }
      const before = held.point;
      held.point = point;
      held.moved ||= Math.hypot(point[0] - held.began[0], point[1] - held.began[1]) > 5;
      if (!held.moved) return;
      const other = [...pointers.values()].find((one) => one !== held);
      if (other) {
        const span = (from) => Math.hypot(from[0] - other.point[0], from[1] - other.point[1]) || 1;
        const middle = [0, 1].map((axis) => (point[axis] + other.point[axis]) / 2);
        this.pan(other.pane, (point[0] - before[0]) / 2, (point[1] - before[1]) / 2);
        if (other.pane) this.zoom(other.pane, span(point) / span(before), ...middle);
        held.moved = other.moved = true;
      } else this.pan(held.pane, point[0] - before[0], point[1] - before[1]);
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        const held = pointers.get(event.pointerId);
        pointers.delete(event.pointerId);
        if (kind === "pointerup" && held && !held.moved) {
          this.choose(this.nearest(...held.point, event.pointerType === "mouse" ? 12 : 24), true);
        }
      });
    }
    canvas.addEventListener("pointerleave", () => this.picked < 0 && this.choose(-1, false));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      const both = (act) => this.panes.forEach(act);
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "+" || event.key === "=") both((pane) => this.zoom(pane, 1.25));
      else if (event.key === "-") both((pane) => this.zoom(pane, 0.8));
      else if (event.key === "0") this.reset();
      else if (event.key === ".") this.step(1);
      else if (event.key === ",") this.step(-1);
      else if (event.key === "Escape") this.choose(-1, true);
      else if (moves[event.key] && canvas.classList.contains("zoomed")) both((pane) => this.pan(pane, ...moves[event.key]));
      else return;
      event.preventDefault();
    });
  }
}
