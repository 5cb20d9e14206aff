// Requests to the service that this page came from, with the API key where one is needed.

export const $ = (id) => document.getElementById(id);

const KEY = "superpoint-key";
let key = sessionStorage.getItem(KEY) ?? "";

/** A refusal, or no answer at all; the message is one line for people. */
export class Refusal extends Error {
  constructor(detail, status = 0, code = "", retryAfter = 0) {
    super(detail);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The URL of a path of the service, wherever it is mounted. */
export function urlOf(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

export function apiKey() {
  return key;
}

export function setApiKey(value) {
  key = value;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The document that a request gives; Refusal otherwise. */
export async function ask(method, path, { query, body, type, signal, keepalive } = {}) {
  const headers = { Accept: "application/json" };
  if (key) headers["X-API-Key"] = key;
  if (type) headers["Content-Type"] = type;
  let response, text;
  try {
    response = await fetch(urlOf(path, query), { method, headers, body, signal, keepalive, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the service does not answer; is it still running?");
  }
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    throw new Refusal(`the answer (${response.status}) cannot be read`, response.status);
  }
  if (response.ok) return found;
  const detail = found?.detail ?? response.statusText;
  throw new Refusal(detail, response.status, found?.code, Number(response.headers.get("Retry-After")) || 0);
}

const needed = new Set();

/** Show why something failed, and ask for the key where that is the reason; `again` is tried once there is one. */
export function tell(error, again) {
  if (error?.name === "AbortError") return;
  const line = $("error");
  line.textContent = error.message + (error.retryAfter ? ` (try again in ${error.retryAfter} s)` : "");
  line.hidden = false;
  if (error.status === 401) {
    if (again) needed.add(again);
    $("key-form").hidden = false;
    $("key").focus();
  } else if (!(error instanceof Refusal)) console.error(error);
}

export function tellNothing() {
  $("error").hidden = true;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey($("key").value.trim());
  $("key-form").hidden = true;
  tellNothing();
  const waiting = [...needed];
  needed.clear();
  for (const again of waiting) again();
});
