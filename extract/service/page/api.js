// Requests to the service: its token, its errors, and waiting where it says that there is no room.

import { el, find } from "./dom.js";

const KEY = "token";
const MOST_SECONDS = 30; // of waiting before another try
const PATIENCE = 120_000; // milliseconds for all tries: a network may take that long to load
let asking = null; // the promise of the dialog, while it is open

export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status; // 0: no answer at all
  }
}

// Where the service answers, also behind a proxy that adds a prefix.
export function place(path) {
  return new URL(path, document.baseURI).href;
}

export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

// A path with whatever names and parameters hold.
export function path(parts, parameters = {}) {
  const query = new URLSearchParams(parameters).toString().replaceAll("+", "%20");
  return parts.map(quoted).join("/") + (query ? `?${query}` : "");
}

// encodeURIComponent, and what it leaves although shells read it.
function quoted(text) {
  const code = (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
  return encodeURIComponent(text).replace(/[!'()*~]/g, code);
}

// The JSON that the service answers with. Throws ServiceError. `signal` ends the waiting.
export async function ask(method, path, body = undefined, signal = undefined) {
  const began = Date.now();
  for (;;) {
    const response = await send(method, path, body, signal);
    if (response.status === 401) {
      await askForToken(hasToken());
      continue;
    }
    const answer = await response.json().catch(() => null);
    if (response.ok && answer !== null) return answer;
    const wait = Number(response.headers.get("Retry-After"));
    if ((response.status === 429 || response.status === 503) && wait && Date.now() - began < PATIENCE) {
      await pause(1000 * Math.min(wait, MOST_SECONDS), signal);
      continue;
    }
    throw new ServiceError(response.status, answer?.error ?? `the service answered with status ${response.status}`);
  }
}

async function send(method, path, body, signal) {
  const headers = hasToken() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
  try {
    return await fetch(place(path), { method, headers, body, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "the service does not answer; is it still running?");
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// Opens the dialog, once for all requests that wait for it.
function askForToken(isWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = find("token-dialog");
    const field = find("token");
    field.value = "";
    if (isWrong && !dialog.querySelector(".notice")) {
      find("token-text").before(el("p", { class: "notice", role: "alert" }, "That token is not the right one."));
    }
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    find("token-form").addEventListener(
      "submit",
      () => {
        sessionStorage.setItem(KEY, field.value.trim());
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
