// Photos on their way to the service: in batches that it takes, and their answers one by one.

import { ask, path } from "./api.js";
import { state } from "./state.js";

const FILES = 16; // in a request: answers come often, and the network still gets batches
const AT_ONCE = 2; // requests: one is on its way while the other is computed
const TOP_K = 5;
const SHARE = 0.9; // of the largest body, for what multipart adds

let waiting = []; // items: {file, onAnswer}
let total = 0;
let done = 0;
let running = 0;
let stopping = new AbortController();
let onProgress = () => {};

export function watch(listener) {
  onProgress = listener;
}

// Asks about the file of each item; calls its `onAnswer` with an answer or an error, {error}.
export function add(items) {
  if (done === total) total = done = 0;
  total += items.length;
  waiting.push(...items);
  onProgress(done, total);
  while (running < AT_ONCE && waiting.length) run();
}

export function stop() {
  stopping.abort();
  stopping = new AbortController();
  const left = waiting;
  waiting = [];
  for (const item of left) finish(item, { error: "stopped before it was asked about" });
}

async function run() {
  running++;
  while (waiting.length) await send(nextBatch());
  running--;
}

function nextBatch() {
  const limits = state.service.limits;
  const most = Math.min(FILES, limits.max_images);
  const batch = [];
  let bytes = 0;
  while (waiting.length && batch.length < most) {
    const { size } = waiting[0].file;
    if (batch.length && bytes + size > SHARE * limits.max_request_mb * 2 ** 20) break;
    bytes += size;
    batch.push(waiting.shift());
  }
  return batch;
}

// Why a file need not be sent at all; null if it is.
export function hopeless(file) {
  const most = Math.min(state.service.limits.max_image_mb, SHARE * state.service.limits.max_request_mb);
  if (file.size === 0) return "the file is empty";
  if (file.size > most * 2 ** 20) return `the file has more than ${Math.floor(most)} MB, which this service refuses`;
  return null;
}

async function send(batch) {
  const { signal } = stopping;
  const sent = [];
  for (const item of batch) {
    const problem = hopeless(item.file);
    if (problem) finish(item, { error: problem });
    else sent.push(item);
  }
  if (!sent.length) return;
  try {
    const answer = await ask("POST", path(["v1", "classify", state.head], { top_k: TOP_K }), form(sent), signal);
    const { images, ...of_all } = answer;
    sent.forEach((item, i) => finish(item, { ...of_all, ...images[i] }));
  } catch (error) {
    if (signal.aborted) sent.forEach((item) => finish(item, { error: "stopped before it was answered" }));
    // One file that the disk no longer has keeps a whole request from being sent; so does one that is too much.
    else if (sent.length > 1 && (error.status === 0 || error.status === 413)) for (const item of sent) await send([item]);
    else sent.forEach((item) => finish(item, { error: error.message }));
  }
}

export function form(items) {
  const body = new FormData();
  for (const { file } of items) body.append("image", file, file.name || "photo");
  return body;
}

function finish(item, answer) {
  done++;
  item.onAnswer(answer);
  onProgress(done, total);
}
