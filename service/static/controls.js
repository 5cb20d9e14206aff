// Sliders over lists of values, and what several parts of the page have in common.

import { $ } from "./api.js";

const MAX_KEYPOINTS = Number(document.body.dataset.maxKeypoints);
export const THRESHOLDS = [0, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 0.9];

/** Numbers of keypoints to choose from, within the service's limit. */
export function keypointCounts(most) {
  const limit = Math.min(most, MAX_KEYPOINTS);
  const steps = [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192];
  return [...steps.filter((count) => count < limit), limit];
}

/** from, from + step, ... to, without the errors of adding them up. */
export function range(from, to, step) {
  const digits = Math.max(0, Math.ceil(-Math.log10(step)));
  return Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) => Number((from + i * step).toFixed(digits)));
}

/** Make a range input choose from values; `value` of what it returns is the chosen one. */
export function slider(id, values, initial, onchange, format = String) {
  const input = $(id);
  const output = input.parentElement.querySelector("output");
  const at = (value) => values.reduce((best, one, i) => (Math.abs(one - value) < Math.abs(values[best] - value) ? i : best), 0);
  Object.assign(input, { min: 0, max: values.length - 1, step: 1 });
  input.value = at(initial);
  const tell = () => {
    output.value = format(values[input.value]);
    input.setAttribute("aria-valuetext", output.value);
  };
  tell();
  input.addEventListener("input", () => {
    tell();
    onchange();
  });
  return {
    get value() {
      return values[input.value];
    },
  };
}

/** A function that runs the given one once its calls have paused; its `cancel` forgets them. */
export function debounced(run, ms) {
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
