// The tab that matches two images.

import { $, apiKey, ask, tell, tellNothing, urlOf } from "./api.js";
import { debounced, keypointCounts, range, slider, THRESHOLDS } from "./controls.js";
import { encodedJpeg, filesOf, fittedPair, openCamera, pictureOf } from "./images.js";
import { PairView } from "./pair.js";

const SAMPLES = ["rocket_0.jpg", "rocket_1.jpg"];
const PAUSE_MS = 180;
const again = debounced(() => run(), PAUSE_MS);
const view = new PairView($("pair"), describe);
const settings = {
  threshold: slider("threshold", THRESHOLDS, 0.005, again),
  keypoints: slider("keypoints", keypointCounts(8192), 1024, again),
  ratio: slider("ratio", range(0.5, 1, 0.01), 1, again, (value) => (value === 1 ? "off" : value.toFixed(2))),
  error: slider("error-limit", [...range(0.5, 4.5, 0.5), ...range(5, 20, 1)], 3, again, (value) => `${value} px`),
};
const originals = [null, null]; // as they were given
const pictures = [null, null]; // as they are sent
const links = [];
let running = null;
let placing = null;
let result = null;
let scored = "similarity"; // what the scores of the result are
let learned = new Set(); // models with a learned matcher; "" is the default one

/** The models that the service has; there is a choice of matchers where a model has several. */
export function offerMatchers({ models, default: standard }) {
  const names = models.filter(({ matchers }) => matchers.includes("lightglue")).map(({ name }) => name);
  learned = new Set(names.includes(standard) ? [...names, ""] : names);
  showMatchers();
}

const hasLearned = () => learned.has($("model").value);
const learns = () => hasLearned() && $("matcher").value === "lightglue";

function showMatchers() {
  $("matcher-field").hidden = !hasLearned();
  $("ratio-field").hidden = learns(); // it has none
}

/** The query of the request, as the settings are now. */
function query() {
  const geometry = $("geometry").value;
  const longest = Number($("longest").value);
  // the service also enlarges to this side: asked for only where it makes one of the images smaller
  const larger = pictures.some((picture) => picture && Math.max(...(picture.size ?? [Infinity])) > longest);
  return {
    geometry,
    threshold: settings.error.value,
    max_keypoints: settings.keypoints.value,
    detection_threshold: settings.threshold.value,
    matcher: learns() ? $("matcher").value : null,
    ratio: settings.ratio.value < 1 && !learns() ? settings.ratio.value : null,
    camera0: geometry === "essential" ? $("camera").value.replaceAll(" ", "") : null,
    resize: longest && larger ? longest : null,
    model: $("model").value || null,
  };
}

/** Match the two images; an answer that is overtaken by the next question is not waited for. */
async function run() {
  again.cancel();
  if (!pictures[0] || !pictures[1]) return;
  running?.abort();
  const mine = (running = new AbortController());
  const asked = query();
  $("match-busy").hidden = false;
  const began = performance.now();
  try {
    const body = new FormData();
    pictures.forEach((picture, index) => body.append(`image${index}`, picture.blob, picture.name));
    const found = await ask("POST", "v1/match", { query: asked, body, signal: mine.signal });
    if (mine !== running) return;
    result = found;
    scored = asked.matcher ? "probability" : "similarity";
    tellNothing();
    showResult(performance.now() - began);
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    result = null;
    showResult(0);
    tell(error, run);
  }
  showCurl(asked);
  $("match-busy").hidden = true;
}

function showResult(elapsed) {
  view.setResult(result);
  describe(-1);
  const count = (name, value) => ($(name).textContent = value);
  if (!result) {
    for (const name of ["n-keypoints", "n-matches", "n-inliers", "n-share"]) count(name, "–");
    $("verdict").textContent = "";
    $("matrices").replaceChildren();
    $("timings").tBodies[0].replaceChildren();
    return;
  }
  const inliers = result.inliers.filter(Boolean).length;
  const matches = result.matches.length;
  const fitted = result.status !== "not_requested";
  count("n-keypoints", `${result.image0.keypoints.length} + ${result.image1.keypoints.length}`);
  count("n-matches", matches);
  count("n-inliers", fitted ? inliers : "–");
  count("n-share", fitted && matches ? `${Math.round((100 * inliers) / matches)} %` : "–");
  const verdicts = {
    ok: `Geometry found by ${result.image0.model}.`,
    too_few_matches: "Too few matches for a geometry.",
    no_model: "No geometry explains the matches.",
    not_requested: "No geometry was asked for.",
  };
  $("verdict").textContent = verdicts[result.status] ?? result.status;
  const named = { H: result.homography, F: result.fundamental, E: result.essential, R: result.R, t: result.t?.map((x) => [x]) };
  $("matrices").replaceChildren(...Object.entries(named).filter(([, matrix]) => matrix).map(([name, matrix]) => table(name, matrix)));
  const { total, ...stages } = result.timings_ms;
  const known = Object.values(stages).reduce((sum, ms) => sum + ms, 0);
  showTimings([["decode, queue, features", total - known], ...Object.entries(stages), ["service, total", total], ["with the network", elapsed]]);
  $("pair").setAttribute("aria-label", `Two images with ${matches} matches, ${inliers} of them inliers`);
}

function table(name, matrix) {
  const made = document.createElement("table");
  made.createCaption().textContent = name;
  for (const numbers of matrix) {
    const row = made.insertRow();
    for (const number of numbers) row.insertCell().textContent = Math.abs(number) < 1e-3 && number ? number.toExponential(3) : number.toFixed(4);
  }
  made.dataset.matrix = name;
  return made;
}

function showTimings(rows) {
  const most = Math.max(...rows.map(([, ms]) => ms));
  $("timings").tBodies[0].replaceChildren(...rows.map(([name, ms]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    const bar = document.createElement("meter");
    Object.assign(bar, { min: 0, max: most || 1, value: Math.max(ms, 0) });
    bar.setAttribute("aria-hidden", "true");
    row.append(head);
    row.insertCell().textContent = ms.toFixed(1);
    row.insertCell().append(bar);
    return row;
  }));
}

/** Say what is known of the match that is picked out. */
function describe(index) {
  if (index < 0 || !result) return ($("picked").textContent = "");
  const [a, b] = result.matches[index];
  const text = ([x, y]) => `(${x.toFixed(1)}, ${y.toFixed(1)})`;
  const kind = result.status !== "ok" ? "" : result.inliers[index] ? ", inlier" : ", outlier";
  $("picked").textContent =
    `match ${index + 1}: ${text(result.image0.keypoints[a])} → ${text(result.image1.keypoints[b])}, ` +
    `${scored} ${result.match_scores[index].toFixed(3)}${kind}`;
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The request as a command for a POSIX shell. */
function curlOf(asked) {
  const plain = /^[\w.+@ -]+$/; // anything else is quoted for curl, too: it splits at ; and ,
  const file = ({ name }) => (plain.test(name) ? name : `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`);
  const forms = pictures.map((picture, index) => `-F ${quoted(`image${index}=@${file(picture)}`)}`);
  const fetched = pictures.filter((picture) => picture.source === "sample").map(({ name }) => quoted(urlOf(`samples/${name}`).href));
  const before = fetched.length ? `curl -fsS --remote-name-all ${[...new Set(fetched)].join(" ")} &&\n` : "";
  // without the variable, curl leaves the header out
  const key = `-H "X-API-Key: $SUPERPOINT_API_KEY"`;
  return `${before}curl -sS ${quoted(urlOf("v1/match", asked).href)} \\\n  ${key} \\\n  ${forms.join(" ")}`;
}

function showCurl(asked) {
  $("curl").textContent = curlOf(asked);
  $("copy").disabled = false;
  const unsaved = pictures.filter((picture) => ["webcam", "scaled"].includes(picture.source));
  const notes = [];
  if (apiKey()) notes.push("Put your key into SUPERPOINT_API_KEY.");
  if (unsaved.length) notes.push(`Save ${unsaved.map((picture) => picture.name).join(" and ")} first, by the links below the images.`);
  else if (pictures.some((picture) => picture.source === "file")) notes.push("Run it in the folder of the images.");
  $("curl-note").textContent = notes.join(" ");
}

async function copy() {
  const text = $("curl").textContent;
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!copied) {
    // no clipboard without https: what is selected can be copied by hand
    getSelection().selectAllChildren($("curl"));
    if (!document.execCommand("copy")) return ($("copy").textContent = "Selected; press Ctrl+C");
  }
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy as curl"), 1500);
}

/** Show the names of the images; each saves what is sent. */
function showNames() {
  links.splice(0).forEach((url) => URL.revokeObjectURL(url));
  $("names").replaceChildren(...pictures.flatMap((picture, index) => {
    if (!picture) return [];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(picture.blob);
    links.push(link.href);
    link.download = picture.name;
    link.textContent = picture.name;
    const size = picture.size ? ` ${picture.size.join(" × ")}` : "";
    return [index && pictures[0] ? " · " : "", link, size + (picture.note ? ` (${picture.note})` : "")];
  }));
}

/** Take images into their places and match them once there are two. */
async function put(given) {
  tellNothing();
  running?.abort();
  given.forEach((picture, index) => {
    if (picture) originals[index] = picture;
  });
  const mine = (placing = {});
  const both = originals[0] && originals[1];
  const made = both ? await fittedPair(originals) : [...originals];
  if (mine !== placing) return; // others have been given meanwhile
  pictures.splice(0, 2, ...made);
  result = null;
  showResult(0);
  pictures.forEach((picture, index) => picture && view.setImage(index, picture.bitmap));
  $("drop-hint").hidden = true;
  $("pair-tools").hidden = false;
  showNames();
  await run();
}

/** Files for a place, or for both where there are two; a file that comes alone may go where there is room. */
async function take(files, place) {
  if (!files.length) return;
  const made = await Promise.all(files.slice(0, 2).map((file) => pictureOf(file, file.name, "file")));
  if (made.length === 2) return put(made);
  const where = place ?? (pictures[0] && !pictures[1] ? 1 : 0);
  return put(where ? [null, made[0]] : [made[0], null]);
}

async function sample() {
  try {
    const blobs = await Promise.all(SAMPLES.map(async (name) => {
      const response = await fetch(urlOf(`samples/${name}`));
      if (!response.ok) throw new Error(`${name} cannot be fetched (${response.status})`);
      return pictureOf(await response.blob(), name, "sample");
    }));
    await put(blobs);
  } catch (error) {
    tell(error);
  }
}

let stopCamera = null;
let taken = [];

async function shoot() {
  try {
    taken = [];
    $("camera-title").textContent = "Take the first image";
    $("take").disabled = true; // until there is a picture
    $("camera-dialog").showModal();
    stopCamera = await openCamera($("preview"));
    if (!$("camera-dialog").open) closeCamera(); // it was closed while the webcam started
  } catch (error) {
    $("camera-dialog").close();
    tell(error);
  }
}

function closeCamera() {
  stopCamera?.();
  stopCamera = null;
}

async function snap() {
  const video = $("preview");
  const { blob } = await encodedJpeg(video, video.videoWidth, video.videoHeight);
  taken.push(await pictureOf(blob, `webcam_${taken.length}.jpg`, "webcam"));
  $("camera-title").textContent = "Move, and take the second image";
  if (taken.length < 2) return;
  $("camera-dialog").close();
  await put(taken);
}

/** Where an essential matrix is asked for, begin with a camera that is plausible for the first image. */
function showCamera() {
  const essential = $("geometry").value === "essential";
  $("camera-field").hidden = !essential;
  const size = pictures[0]?.size;
  if (!essential || $("camera").value || !size) return;
  const focal = Math.round(0.9 * Math.max(...size));
  $("camera").value = `${focal},${focal},${(size[0] - 1) / 2},${(size[1] - 1) / 2}`;
}

for (const index of [0, 1]) {
  $(`file${index}`).addEventListener("change", (event) => {
    take([...event.target.files], index);
    event.target.value = ""; // the same file may be chosen again
  });
}
$("sample").addEventListener("click", sample);
$("shoot").addEventListener("click", shoot);
$("preview").addEventListener("loadeddata", () => ($("take").disabled = false));
$("take").addEventListener("click", snap);
$("camera-cancel").addEventListener("click", () => $("camera-dialog").close());
$("camera-dialog").addEventListener("close", closeCamera);
$("copy").addEventListener("click", copy);
$("geometry").addEventListener("change", () => {
  showCamera();
  run();
});
for (const name of ["matcher", "model"]) $(name).addEventListener("change", showMatchers);
for (const name of ["longest", "matcher", "model"]) $(name).addEventListener("change", () => run());
$("camera").addEventListener("input", again);
for (const name of ["lines", "outliers", "points"]) {
  $(`show-${name}`).addEventListener("change", (event) => {
    view.show[name] = event.target.checked;
    view.draw();
  });
}
$("zoom-in").addEventListener("click", () => view.panes.forEach((pane) => view.zoom(pane, 1.5)));
$("zoom-out").addEventListener("click", () => view.panes.forEach((pane) => view.zoom(pane, 1 / 1.5)));
$("zoom-fit").addEventListener("click", () => view.reset());
const stage = $("match-stage");
addEventListener("dragover", (event) => {
  event.preventDefault();
  if (!$("match").hidden) stage.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? stage.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  if ($("match").hidden) return;
  const box = stage.getBoundingClientRect();
  const wide = box.width >= 640;
  const second = wide ? event.clientX > box.left + box.width / 2 : event.clientY > box.top + box.height / 2;
  take(filesOf(event.dataTransfer), pictures[0] && second ? 1 : pictures[0] && !pictures[1] ? 1 : 0);
});
addEventListener("paste", (event) => !$("match").hidden && take(filesOf(event.clipboardData)));
