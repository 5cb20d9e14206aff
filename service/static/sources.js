// Where frames come from: the webcam, files, or a motion over the sample image. `next()` gives {blob, canvas}, or null
// at the end; `live` sources do not wait for the service.

import { urlOf } from "./api.js";
import { encodedJpeg, openCamera } from "./images.js";

const QUALITY = 0.85;

function within(width, height, side) {
  const factor = Math.min(side / Math.max(width, height), 1);
  return [Math.max(Math.round(width * factor), 8), Math.max(Math.round(height * factor), 8)];
}

export async function webcamSource(side) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true });
  const stop = await openCamera(video, 640);
  return {
    live: true,
    next: () => encodedJpeg(video, ...within(video.videoWidth, video.videoHeight, side), QUALITY),
    stop,
  };
}

export function fileSource(files, side) {
  const ordered = [...files].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  let index = 0;
  return {
    live: false,
    async next() {
      if (index === ordered.length) return null;
      const file = ordered[index++];
      const bitmap = await createImageBitmap(file).catch(() => null);
      if (!bitmap) return { blob: file, canvas: null, name: file.name }; // the service says what is wrong, or reads it
      const made = await encodedJpeg(bitmap, ...within(bitmap.width, bitmap.height, side), QUALITY);
      bitmap.close();
      return { ...made, name: file.name };
    },
    stop() {},
  };
}

/** A camera that wanders over the sample image, turning and zooming; without end. */
export async function motionSource(side) {
  const response = await fetch(urlOf("samples/rocket_0.jpg"));
  const bitmap = await createImageBitmap(await response.blob());
  const [width, height] = [side, Math.round((side * bitmap.height) / bitmap.width)];
  let step = 0;
  return {
    live: false,
    async next() {
      const t = step++ / 30;
      const frame = document.createElement("canvas");
      Object.assign(frame, { width, height });
      const context = frame.getContext("2d");
      const scale = (width / bitmap.width) * (1.7 - 0.2 * Math.cos(0.9 * t));
      context.translate(width / 2, height / 2);
      context.rotate(0.07 * Math.sin(0.7 * t));
      context.scale(scale, scale);
      context.translate(-bitmap.width / 2 - 80 * Math.sin(0.8 * t), -bitmap.height / 2 - 42 * Math.sin(1.3 * t));
      context.drawImage(bitmap, 0, 0);
      return encodedJpeg(frame, width, height, QUALITY);
    },
    stop() {
      bitmap.close();
    },
  };
}
