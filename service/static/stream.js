// A sequence of the service: frames out and tracks in, over a WebSocket, or by a request for each frame.

import { apiKey, ask, Refusal, urlOf } from "./api.js";

const STREAM_PENDING = 6; // frames on their way; the service drops the oldest that wait before it comes to this
const OPENING_MS = 5000;
const GONE = 4404;
const CLOSED = {
  1009: "a frame is larger than the service takes",
  1012: "the service is shutting down",
  [GONE]: "the service has forgotten the sequence",
  4409: "another stream has taken over the sequence",
};

let lastStamp = 0n;

/** Nanoseconds since 1970, later than any before; as text, since a number of JavaScript cannot hold them. */
function stamp() {
  const now = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e3)) * 1000n;
  lastStamp = now > lastStamp ? now : lastStamp + 1n;
  return lastStamp.toString();
}

/** Open a sequence; `settings` as the service's OpenSequence. */
export async function openSequence(settings) {
  const opened = await ask("POST", "v1/sequences", { body: JSON.stringify(settings), type: "application/json" });
  return opened.id;
}

/** Have the service forget it; what cannot be closed, it forgets by itself. */
export function closeSequence(id) {
  return ask("DELETE", `v1/sequences/${id}`, { keepalive: true }).catch(() => {});
}

/** Frames over a WebSocket; rejects where none can be opened. `onanswer(document)` for each frame, in their order. */
export async function openStream(id, onanswer, onend) {
  const url = urlOf(`v1/sequences/${id}/stream`, { format: "json", descriptors: "none" });
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  // a browser sets no headers on a WebSocket: the key goes as a subprotocol
  const bytes = String.fromCharCode(...new TextEncoder().encode(apiKey()));
  const key = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const socket = apiKey() ? new WebSocket(url, ["superpoint", `key.${key}`]) : new WebSocket(url);
  let closing = false;
  const way = {
    name: "WebSocket",
    mostPending: STREAM_PENDING,
    paced: 2,
    send(frameId, blob) {
      if (socket.readyState !== WebSocket.OPEN) return; // it is closing: the event that follows says why
      socket.send(JSON.stringify({ stamp_ns: stamp(), frame_id: frameId, right: false }));
      socket.send(blob);
    },
    close() {
      closing = true;
      socket.close();
    },
  };
  return new Promise((opened, failed) => {
    const timer = setTimeout(() => {
      socket.close();
      failed(new Refusal("the stream did not open"));
    }, OPENING_MS);
    socket.onopen = () => {
      clearTimeout(timer);
      opened(way);
    };
    socket.onmessage = ({ data }) => onanswer(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      clearTimeout(timer);
      failed(new Refusal("the stream could not be opened"));
      const why = CLOSED[code] ?? (reason || `code ${code}`);
      if (!closing) onend(new Refusal(`the stream has ended: ${why}`, code === GONE ? 404 : 0));
    };
  });
}

/** Frames by a request for each, one after the other. */
export function openPosts(id, onanswer, onend) {
  const stopped = new AbortController();
  return {
    name: "requests",
    mostPending: 1,
    paced: 1,
    async send(frameId, blob) {
      const query = { stamp_ns: stamp(), frame_id: frameId, descriptors: "none" };
      const type = blob.type || "application/octet-stream";
      try {
        onanswer(await ask("POST", `v1/sequences/${id}/frames`, { query, body: blob, type, signal: stopped.signal }));
      } catch (error) {
        if (error.name === "AbortError") return;
        const lasting = error.status === 404 || error.status === 401 || error.status === 0;
        if (lasting) onend(error);
        else if (error.status === 429) onanswer({ frame_id: frameId, dropped: true });
        else onanswer({ frame_id: frameId, problem: { detail: error.message } });
      }
    },
    close() {
      stopped.abort();
    },
  };
}
