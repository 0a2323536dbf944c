// The list of photos: each with its picture, its answer or its error, the photos nearest to it, and its correction.

import { ask, path } from "./api.js";
import { forget, keep } from "./corrections.js";
import { bar, counted, el, find, probability, say } from "./dom.js";
import * as queue from "./queue.js";
import { state } from "./state.js";

const SIDE = 256; // pixels of a preview
const NEAR = 6; // photos that are shown as reasons
const NEAR_AT_ONCE = 8; // so many photos dropped together get their reasons without being asked
export const DRAGGED = "application/x-photo-of-this-page";

const items = new Map(); // by number: {number, file, card, ...}
let lastNumber = 0;
let lastNamed = null; // of the photo that was answered last
let previews = Promise.resolve(); // one after the other, since a decoded photo takes megabytes

export const item = (number) => items.get(Number(number));
export const latestName = () => lastNamed;

export function add(files) {
  if (!files.length) return;
  const added = files.map((file) => create(file, files.length <= NEAR_AT_ONCE));
  find("results").prepend(...added.map((one) => one.card));
  find("tools").hidden = false;
  for (const one of added) previews = previews.then(() => preview(one));
  askAbout(added);
}

export function askAgain() {
  askAbout([...items.values()]);
}

function askAbout(some) {
  for (const one of some) {
    one.answer.replaceChildren(el("p", { class: "soft" }, "Waiting…"));
    one.near.replaceChildren();
    one.near.hidden = true;
    one.card.classList.remove("failed");
  }
  queue.add(some.map((one) => ({ file: one.file, onAnswer: (answer) => show(one, answer) })));
}

export function clear() {
  queue.stop();
  for (const one of items.values()) if (one.url) URL.revokeObjectURL(one.url);
  items.clear();
  find("results").replaceChildren();
  find("tools").hidden = true;
  say("status", "The list is empty.");
  find("files").focus();
}

// Draws the progress, and says the end of it.
export function progress(done, total) {
  find("progress").hidden = done === total;
  find("bar").max = total;
  find("bar").value = done;
  find("count").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")}`;
  if (done < total || !total) return;
  const failed = [...items.values()].filter((one) => one.failed).length;
  say("status", `${counted(total, "photo")} done${failed ? `; ${failed} without an answer` : ""}.`);
  find("results").dispatchEvent(new Event("answered"));
}

function create(file, withReasons) {
  const number = ++lastNumber;
  const name = file.webkitRelativePath || file.name || "pasted photo";
  const picture = el("div", { class: "picture" });
  const answer = el("div", { class: "answer" });
  const near = el("div", { class: "near", hidden: true });
  const correction = el("div", { class: "correction" });
  const card = el(
    "li",
    { class: "result", "data-number": number },
    picture,
    el("div", { class: "body" }, el("p", { class: "name", id: `name-${number}` }, name), answer, correction),
    near,
  );
  card.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData(DRAGGED, String(number));
    event.dataTransfer.effectAllowed = "copy";
  });
  const one = { number, file, name, card, picture, answer, near, correction, withReasons, failed: false, kept: null };
  items.set(number, one);
  return one;
}

async function preview(one) {
  if (!items.has(one.number)) return;
  try {
    const bitmap = await createImageBitmap(one.file);
    const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = el("canvas", {
      width: Math.max(1, Math.round(scale * bitmap.width)),
      height: Math.max(1, Math.round(scale * bitmap.height)),
    });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve));
    one.url = URL.createObjectURL(blob);
    one.picture.replaceChildren(el("img", { src: one.url, alt: one.name, draggable: "false" }));
    one.card.draggable = state.corrects;
  } catch {
    one.picture.replaceChildren(el("span", {}, "no preview"));
  }
}

function show(one, answer) {
  if (!items.has(one.number)) return;
  one.failed = Boolean(answer.error);
  one.card.classList.toggle("failed", one.failed);
  if (answer.error) {
    one.answer.replaceChildren(el("p", { class: "error" }, el("b", {}, "No answer: "), answer.error));
    one.correction.replaceChildren();
    return;
  }
  lastNamed = one.name.split("/").at(-1);
  const [best] = answer.labels;
  const isSure = answer.not_sure_below === null || best.probability >= answer.not_sure_below;
  one.best = best.label;
  one.answer.replaceChildren(
    el(
      "p",
      { class: "verdict" },
      isSure ? null : el("span", { class: "unsure", title: `below ${probability(answer.not_sure_below)}` }, "Not sure"),
      " ",
      isSure ? el("b", {}, best.label) : el("span", {}, "perhaps ", el("b", {}, best.label)),
    ),
    bars(answer.labels, isSure),
  );
  if (!one.kept) offer(one);
  if (one.withReasons) reasons(one);
  else offerReasons(one);
}

export function bars(labels, isSure) {
  return el(
    "ol",
    { class: "bars", "aria-label": "Most likely classes" },
    labels.map(({ label, probability: share }, place) =>
      el(
        "li",
        {},
        el("span", { class: "label" }, label),
        bar(share, place === 0 && isSure ? "best" : ""),
        el("span", { class: "number" }, probability(share)),
      ),
    ),
  );
}

// The photos of the cache that are nearest to this one.

function offerReasons(one) {
  if (!state.hasPhotos) return;
  const button = el(
    "button",
    { type: "button", class: "quiet", "aria-describedby": `name-${one.number}`, click: () => reasons(one) },
    "Why?",
  );
  one.near.hidden = false;
  one.near.replaceChildren(button);
}

async function reasons(one) {
  if (!state.hasPhotos) return;
  const hadFocus = one.near.contains(document.activeElement);
  one.near.hidden = false;
  one.near.replaceChildren(el("p", { class: "soft small looking" }, "Looking for the nearest photos…"));
  try {
    const { images } = await ask("POST", path(["v1", "near"], { k: NEAR }), queue.form([one]));
    const [{ near, error }] = images;
    one.near.replaceChildren(error ? el("p", { class: "error" }, error) : gallery(one, near));
    if (hadFocus) one.near.querySelector("h3")?.focus();
  } catch (error) {
    one.near.replaceChildren(el("p", { class: "error" }, error.message));
  }
}

function gallery(one, near) {
  const title = el("h3", { tabindex: "-1" }, "Why? The nearest known photos");
  const photos = near.map(({ path: file, label, cosine, thumbnail }) =>
    el(
      "li",
      { class: label === one.best ? "agrees" : "differs", title: file },
      el("div", { class: "picture" }, thumbnail ? el("img", { src: thumbnail, alt: file }) : el("span", {}, "no picture")),
      el("b", {}, label),
      el("span", { class: "number" }, `distance ${(1 - cosine).toFixed(3)}`),
    ),
  );
  return el("div", {}, title, el("ul", { class: "gallery" }, photos));
}

// What is wrong with the answer.

function offer(one) {
  if (!state.corrects) return;
  const button = el(
    "button",
    { type: "button", class: "quiet wrong", "aria-describedby": `name-${one.number}`, click: () => choose(one) },
    "This is wrong",
  );
  one.correction.replaceChildren(button);
}

function choose(one) {
  const field = el("input", {
    type: "text",
    id: `right-${one.number}`,
    list: "labels",
    required: true,
    maxlength: "200",
    autocomplete: "off",
  });
  const cancel = () => {
    offer(one);
    one.correction.querySelector("button").focus();
  };
  const form = el(
    "form",
    { class: "line" },
    el("label", { for: field.id }, "It is"),
    field,
    el("button", { type: "submit" }, "Keep"),
    el("button", { type: "button", class: "quiet", click: cancel }, "Cancel"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    correct(one, field.value.trim());
  });
  form.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
  one.correction.replaceChildren(form);
  field.focus();
}

// Keeps the photo as one of the class `label`; no longer as one of another, to which the service sees.
export async function correct(one, label) {
  if (!label) return;
  const hadFocus = one.correction.contains(document.activeElement);
  try {
    const [answer] = await keep(label, [one.file]);
    if (answer.error) throw new Error(answer.error);
    one.kept = { label: answer.label, path: answer.path };
  } catch (error) {
    one.correction.querySelector(".error")?.remove();
    one.correction.append(el("p", { class: "error", role: "alert" }, `It is not kept: ${error.message}`));
    return;
  }
  const undo = el("button", { type: "button", class: "quiet", click: () => takeBack(one) }, "Undo");
  one.correction.replaceChildren(el("p", { class: "kept" }, "Kept as ", el("b", {}, one.kept.label), " ", undo));
  if (hadFocus) undo.focus();
  say("class-status", `${one.name} is kept as ${one.kept.label}.`);
}

async function takeBack(one) {
  try {
    await forget(one.kept.label, one.kept.path);
  } catch (error) {
    one.correction.append(el("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  one.kept = null;
  offer(one);
  one.correction.querySelector("button").focus();
  say("class-status", `${one.name} is taken back.`);
}
