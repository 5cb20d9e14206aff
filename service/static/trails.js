// Frames with the tails of their tracks, coloured by age, and a timeline of the last frames.

const STOPS = [[79, 140, 255], [33, 199, 192], [143, 220, 75], [255, 210, 61], [255, 122, 61]]; // as #ramp
const OLD = 30;
const TAIL = 24;
const SHADES = 12;
const FORGET = 12; // frames that a track may go unseen here; the service tells of those that it gives up
const HISTORY = 180;

const PALETTE = Array.from({ length: SHADES }, (_, shade) => {
  const at = (shade / (SHADES - 1)) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  const mixed = STOPS[low].map((value, i) => Math.round(value + (at - low) * (STOPS[low + 1][i] - value)));
  return `rgb(${mixed.join(" ")})`;
});

const shadeOf = (age) => Math.min(Math.floor((SHADES * (age - 1)) / OLD), SHADES - 1);

export class Trails {
  constructor(canvas, timeline) {
    Object.assign(this, { canvas, timeline });
    this.reset();
    new ResizeObserver(() => this.arrange()).observe(canvas.parentElement);
  }

  reset() {
    this.tracks = new Map(); // id -> {points, age, seen}
    this.history = [];
    this.dropped = 0; // since the last frame that was tracked
    this.frame = this.image = null;
    this.size = [3, 2];
    this.arrange();
  }

  /** Take the document of a tracked frame, and the image that it belongs to. */
  take(document, image) {
    this.frame = document;
    this.image = image;
    if (document.image_size.join() !== this.size.join()) {
      this.size = document.image_size;
      this.arrange();
    }
    document.track_ids.forEach((id, row) => {
      const track = this.tracks.get(id) ?? { points: [] };
      track.points.push(document.keypoints[row]);
      if (track.points.length > TAIL) track.points.shift();
      Object.assign(track, { age: document.ages[row], seen: document.index });
      this.tracks.set(id, track);
    });
    for (const id of document.lost) this.tracks.delete(id);
    for (const [id, track] of this.tracks) if (document.index - track.seen > FORGET) this.tracks.delete(id);
    const fresh = document.new.filter(Boolean).length;
    this.history.push({ tracks: document.ages.length, fresh, keyframe: document.keyframe, dropped: this.dropped });
    if (this.history.length > HISTORY) this.history.shift();
    this.dropped = 0;
    this.draw();
  }

  /** Remember that a frame was dropped. */
  drop() {
    this.dropped += 1;
  }

  arrange() {
    const width = this.canvas.parentElement.clientWidth;
    if (!width) return; // in a tab that is not shown
    this.ratio = Math.min(devicePixelRatio || 1, 3);
    const height = Math.min((width * this.size[1]) / this.size[0], innerHeight * 0.62);
    this.fit(this.canvas, width, height);
    this.canvas.style.height = `${height}px`;
    this.fit(this.timeline, this.timeline.clientWidth, this.timeline.clientHeight);
    this.draw();
  }

  fit(canvas, width, height) {
    Object.assign(canvas, { width: Math.round(width * this.ratio), height: Math.round(height * this.ratio) });
  }

  draw() {
    this.pending ||= requestAnimationFrame(() => {
      this.pending = 0;
      this.paint();
      this.paintTimeline();
    });
  }

  paint() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.frame) return;
    const [width, height] = this.size;
    const scale = Math.min(this.canvas.width / width, this.canvas.height / height);
    context.setTransform(scale, 0, 0, scale, (this.canvas.width - width * scale) / 2, (this.canvas.height - height * scale) / 2);
    context.fillStyle = "#2a333b";
    context.fillRect(0, 0, width, height);
    if (this.image) context.drawImage(this.image, 0, 0, width, height);
    const unit = (this.ratio / scale) * (this.canvas.clientWidth < 600 ? 0.65 : 1); // a pixel of the page
    const shades = PALETTE.map(() => []);
    for (const id of this.frame.track_ids) {
      const track = this.tracks.get(id);
      shades[shadeOf(track.age)].push(track.points);
    }
    context.lineJoin = context.lineCap = "round";
    shades.forEach((tails, shade) => {
      context.strokeStyle = context.fillStyle = PALETTE[shade];
      context.lineWidth = 1.6 * unit;
      context.beginPath();
      for (const points of tails) points.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x + 0.5, y + 0.5));
      context.stroke();
      context.beginPath();
      for (const points of tails) {
        const [x, y] = points.at(-1);
        context.moveTo(x + 0.5 + 2.4 * unit, y + 0.5);
        context.arc(x + 0.5, y + 0.5, 2.4 * unit, 0, 7);
      }
      context.fill();
    });
  }

  paintTimeline() {
    const { timeline, ratio } = this;
    const context = timeline.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const [width, height] = [timeline.width / ratio, timeline.height / ratio];
    context.clearRect(0, 0, width, height);
    const step = width / HISTORY;
    const most = Math.max(...this.history.map((entry) => entry.tracks), 1);
    const tall = (count) => (count / most) * (height - 14);
    this.history.forEach((entry, index) => {
      const x = width - (this.history.length - index) * step;
      const bar = (colour, from, to) => {
        context.fillStyle = colour;
        context.fillRect(x, height - to, Math.max(step - 0.5, 0.5), to - from);
      };
      bar("#19a99d", 0, tall(entry.tracks - entry.fresh));
      bar("#ffc53d", tall(entry.tracks - entry.fresh), tall(entry.tracks));
      if (entry.dropped) bar("#ff3b1f", 0, Math.min(3 + entry.dropped, 12));
      if (!entry.keyframe) return;
      context.fillStyle = "#e8a500";
      context.beginPath();
      context.arc(x + step / 2, 6, 3, 0, 7);
      context.fill();
    });
  }
}
