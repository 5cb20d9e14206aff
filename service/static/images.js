// Images from files, the webcam and the service's samples; made smaller only where the service would refuse them.

import { Refusal } from "./api.js";

const { maxBody, maxPixels } = document.body.dataset;
export const LIMITS = { body: Number(maxBody), pixels: Number(maxPixels) };
const FORM = 4096; // of a request beside its images, bytes

/** An image to be sent: its bytes, what the browser sees of it (null where it cannot read it), and its name. */
export class Picture {
  constructor(blob, bitmap, name, source = "file") {
    Object.assign(this, { blob, bitmap, name, source, note: "" });
  }
  get size() {
    return this.bitmap ? [this.bitmap.width, this.bitmap.height] : null;
  }
}

export async function pictureOf(blob, name, source) {
  const bitmap = await createImageBitmap(blob).catch(() => null); // the service may read what the browser does not
  return new Picture(blob, bitmap, name, source);
}

/** What a canvas or video shows, as a JPEG. */
export async function encodedJpeg(drawable, width, height, quality = 0.92) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(drawable, 0, 0, width, height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));
  if (!blob) throw new Refusal("the browser could not encode an image");
  return { blob, canvas };
}

async function scaled(picture, factor) {
  const [width, height] = picture.size.map((side) => Math.max(Math.floor(side * factor), 8));
  const { blob } = await encodedJpeg(picture.bitmap, width, height);
  const name = picture.name.replace(/\.[^.]*$/, "") + `_${width}x${height}.jpg`;
  const made = await pictureOf(blob, name, "scaled");
  made.note = `made smaller: the service takes at most ${LIMITS.pixels / 1e6} megapixels and ${LIMITS.body / 1e6} MB`;
  return made;
}

/** The picture within the service's limits, where it can be brought there; `share` of the body may be its own. */
export async function fitted(picture, share) {
  const room = LIMITS.body * share - FORM;
  let found = picture;
  if (!picture.size) return found;
  const pixels = picture.size[0] * picture.size[1];
  let factor = Math.min(Math.sqrt(LIMITS.pixels / pixels), 1);
  if (factor < 1) found = await scaled(picture, factor);
  while (found.blob.size > room && Math.min(...found.size) > 16) {
    if (found !== picture) factor *= 0.8; // first without making it smaller: a PNG may be all that is too large
    found = await scaled(picture, factor);
  }
  return found;
}

/** Two pictures that go into one body. */
export async function fittedPair(pair) {
  const within = await Promise.all(pair.map((picture) => fitted(picture, 1)));
  if (within[0].blob.size + within[1].blob.size + FORM <= LIMITS.body) return within;
  return Promise.all(within.map((picture) => fitted(picture, 0.5)));
}

/** A video element that shows the webcam; returns how to stop it. */
export async function openCamera(video, side = 1280) {
  if (!navigator.mediaDevices) throw new Refusal("the browser gives a webcam to pages of https and localhost only");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: side }, facingMode: "environment" },
      audio: false,
    });
  } catch (error) {
    throw new Refusal(`the webcam cannot be used: ${error.message || error.name}`);
  }
  video.srcObject = stream;
  await video.play();
  return () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
}

/** The files of a drop or paste that may be images. */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}
