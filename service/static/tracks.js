// The tab that follows points through a sequence.

import { $, Refusal, tell, tellNothing } from "./api.js";
import { debounced, keypointCounts, range, slider, THRESHOLDS } from "./controls.js";
import { fileSource, motionSource, webcamSource } from "./sources.js";
import { closeSequence, openPosts, openSequence, openStream } from "./stream.js";
import { Trails } from "./trails.js";

const trails = new Trails($("tracks"), $("timeline"));
const restart = debounced(() => current && start(current.make), 400);
const settings = {
  keypoints: slider("seq-keypoints", keypointCounts(2048), 384, restart),
  threshold: slider("seq-threshold", THRESHOLDS, 0.005, restart),
  rate: slider("seq-rate", range(1, 30, 1), 15, () => {}, (value) => `${value}/s`),
};
let current = null;

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** One run from a source: a sequence of the service, and what is known of its frames. */
class Run {
  constructor(make) {
    this.make = make;
    this.pending = new Map(); // frame id -> {canvas, sent}
    this.answered = []; // when, of the last two seconds
    this.sent = this.frames = this.keyframes = this.dropped = 0;
    this.latency = null;
    this.ended = false;
    this.wake = () => {};
  }

  async play() {
    this.source = await this.make(Number($("seq-side").value));
    if (this.ended) return this.source.stop();
    this.id = await openSequence({
      camera_id: "page",
      max_keypoints: settings.keypoints.value,
      detection_threshold: settings.threshold.value,
      ttl_s: 60,
    });
    if (this.ended) return this.end();
    await this.connect($("seq-way").value);
    while (!this.ended) {
      const began = performance.now();
      const frame = await this.source.next();
      if (!frame) break;
      if (!this.source.live) while (!this.ended && this.pending.size >= this.way.paced) await this.answer();
      if (this.ended) return;
      if (this.pending.size >= this.way.mostPending) this.drop();
      else this.send(frame);
      await wait(Math.max(1000 / settings.rate.value - (performance.now() - began), 0));
    }
    while (!this.ended && this.pending.size) await this.answer();
    if (!this.ended) stop("All frames are done.");
  }

  async connect(wanted) {
    const take = (document) => this.take(document);
    const fail = (error) => this.fail(error);
    if (wanted === "stream") {
      let open = false;
      const onend = (error) => open && fail(error);
      this.way = await openStream(this.id, take, onend).catch(() => null);
      open = true;
    }
    this.way ??= openPosts(this.id, take, fail); // a proxy may not let WebSockets through
    if (this.ended) return this.way.close();
    state(`Running over ${this.way.name === "requests" ? "HTTP requests" : "a WebSocket"}.`);
  }

  answer() {
    return new Promise((done) => (this.wake = done));
  }

  send({ blob, canvas, name }) {
    const frameId = String(this.sent++);
    this.pending.set(frameId, { canvas, name, sent: performance.now() });
    this.way.send(frameId, blob);
  }

  drop() {
    this.dropped += 1;
    trails.drop();
    this.numbers();
  }

  /** The service's answer to a frame. */
  take(document) {
    if (this.ended) return;
    const frame = this.pending.get(document.frame_id);
    this.pending.delete(document.frame_id);
    this.wake();
    if (document.dropped) return this.drop();
    if (document.problem) {
      const where = frame?.name ? `${frame.name}: ` : "";
      const refusal = new Refusal(where + document.problem.detail, document.problem.status);
      return refusal.status === 404 ? this.fail(refusal) : tell(refusal); // without its sequence, no frame is tracked
    }
    const now = performance.now();
    this.frames += 1;
    this.keyframes += document.keyframe ? 1 : 0;
    this.answered = [...this.answered.filter((time) => now - time < 2000), now];
    const took = now - (frame?.sent ?? now);
    this.latency = this.latency === null ? took : 0.8 * this.latency + 0.2 * took;
    trails.take(document, frame?.canvas ?? null);
    this.numbers(document);
  }

  numbers(document) {
    const text = (name, value) => ($(name).textContent = value);
    if (document) {
      const ages = document.ages;
      text("s-tracks", ages.length);
      text("s-new", document.new.filter(Boolean).length);
      text("s-lost", document.lost.length);
      text("s-age", ages.length ? (ages.reduce((sum, age) => sum + age, 0) / ages.length).toFixed(1) : "–");
      $("keyframe").hidden = !document.keyframe && performance.now() - this.marked > 400;
      if (document.keyframe) this.marked = performance.now();
      $("tracks").setAttribute("aria-label", `Frame ${document.index} with ${ages.length} tracks`);
    }
    const span = (this.answered.at(-1) - this.answered[0]) / 1000;
    text("s-frames", this.frames);
    text("s-keyframes", this.keyframes);
    text("s-fps", span > 0 ? ((this.answered.length - 1) / span).toFixed(1) : "–");
    text("s-latency", this.latency === null ? "–" : `${Math.round(this.latency)} ms`);
    text("s-dropped", this.dropped);
  }

  fail(error) {
    if (this.ended) return;
    if (error.status === 404) this.id = null; // it is gone already
    tell(error, () => start(this.make));
    if (this === current) stop("Stopped.");
    else this.end();
  }

  end() {
    this.ended = true;
    this.wake();
    this.source?.stop();
    this.way?.close();
    if (this.id) closeSequence(this.id);
    this.id = null;
  }
}

const state = (text) => ($("s-state").textContent = text);

function stop(text = "Stopped.") {
  if (!current) return;
  current.end();
  current = null;
  $("seq-stop").disabled = true;
  $("keyframe").hidden = true;
  state(text);
}

async function start(make) {
  stop();
  restart.cancel();
  tellNothing();
  trails.reset();
  const run = (current = new Run(make));
  $("seq-stop").disabled = false;
  $("seq-hint").hidden = true;
  state("Opening a sequence.");
  run.numbers();
  try {
    await run.play();
  } catch (error) {
    run.fail(error);
  }
}

$("seq-demo").addEventListener("click", () => start(motionSource));
$("seq-webcam").addEventListener("click", () => start(webcamSource));
$("seq-files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  if (files.length) start(async (side) => fileSource(files, side));
});
$("seq-stop").addEventListener("click", () => stop());
for (const name of ["seq-side", "seq-way"]) $(name).addEventListener("change", restart);
addEventListener("drop", (event) => {
  const files = [...(event.dataTransfer?.files ?? [])];
  if (!$("sequence").hidden && files.length) start(async (side) => fileSource(files, side));
});
addEventListener("tab", (event) => {
  if (event.detail === "sequence") trails.arrange();
  else stop();
});
addEventListener("pagehide", () => stop());
