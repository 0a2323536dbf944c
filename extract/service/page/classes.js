// What the classifier knows and how good it is; and its classes, onto which photos can be dropped.

import { bar, counted, el, find, percent, say } from "./dom.js";
import { acceptDrops, filesOf, hasFiles } from "./intake.js";
import { keep } from "./corrections.js";
import { DRAGGED, correct, item } from "./results.js";
import { state } from "./state.js";

const MOST = 60; // classes that are drawn at once
const MANY = 24; // classes from which on there is a field to filter them
const problems = new Map(); // by label the photos of the last drop that are not kept

export function open() {
  state.addEventListener("change", draw);
  find("filter").addEventListener("input", drawClasses);
  find("new-class").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = find("new-name");
    const label = field.value.trim();
    if (!label) return;
    if (!state.labels.includes(label)) state.added.push(label);
    field.value = "";
    find("filter").value = "";
    state.changed();
    say("class-status", `The class ${label} is there; give it photos.`);
    const cards = [...find("classes").children];
    cards.find((card) => card.dataset.label === label)?.querySelector("input")?.focus();
  });
}

function draw() {
  const { about, corrects } = state;
  find("known").hidden = !about && !corrects;
  find("known-title").textContent = about ? "What it knows" : "Its classes";
  find("explanation").textContent = about
    ? ""
    : "Name two classes or more, drop a few photos on each, and train: that takes seconds.";
  find("explanation").hidden = Boolean(about);
  find("teach").hidden = !corrects || !about;
  find("teach").textContent =
    "Is an answer wrong? Drag its photo onto the right class, or drop photos from a folder there; then train again.";
  find("new-class").hidden = !corrects;
  find("labels").replaceChildren(...state.labels.map((label) => el("option", { value: label })));
  drawFacts(about);
  drawCalibration();
  drawClasses();
}

function drawFacts(about) {
  const facts = [];
  if (about) {
    facts.push(["Classes", about.labels.length.toLocaleString("en")]);
    if (about.test_accuracy !== null) facts.push(["Right on test photos", percent(about.test_accuracy)]);
    if (about.test_photos) facts.push(["Test photos", about.test_photos.toLocaleString("en")]);
    if (about.not_sure_below) facts.push(["Not sure below", percent(about.not_sure_below, 0)]);
    facts.push(["Version", String(about.version)]);
  }
  find("facts").hidden = !about;
  find("facts").replaceChildren(
    ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function drawCalibration() {
  const rows = (state.details?.calibration ?? []).filter(({ count }) => count);
  find("calibration").hidden = !rows.length;
  if (!rows.length) return;
  const open = find("calibration").querySelector("details")?.open ?? false;
  const table = el(
    "table",
    {},
    el(
      "thead",
      {},
      el("tr", {}, ...["When it says", "it is right", "", "test photos"].map((text) => el("th", { scope: "col" }, text))),
    ),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, `${percent(row.from, 0)} to ${percent(row.to, 0)}`),
          el("td", {}, percent(row.accuracy, 0)),
          el("td", { class: "wide-bar" }, bar(row.accuracy, "best")),
          el("td", {}, row.count.toLocaleString("en")),
        ),
      ),
    ),
  );
  find("calibration").replaceChildren(
    el(
      "details",
      { open },
      el("summary", {}, "How far its probabilities can be trusted"),
      el("p", { class: "soft" }, "Measured on photos that it did not learn from."),
      el("div", { class: "wide" }, table),
    ),
  );
}

function drawClasses() {
  const { labels } = state;
  const text = find("filter").value.trim().toLowerCase();
  const fitting = labels.filter((label) => label.toLowerCase().includes(text));
  // New ones first where not all are shown, since they are what the user works on.
  const shown = fitting.length > MOST ? [...fitting.slice(-MOST / 4), ...fitting].slice(0, MOST) : fitting;
  find("sieve").hidden = labels.length <= MANY;
  const hidden = fitting.length - new Set(shown).size;
  find("hidden-classes").textContent = hidden ? `And ${counted(hidden, "more class", "more classes")}.` : "";
  const thumbnails = new Map((state.details?.examples ?? []).map(({ label, thumbnail }) => [label, thumbnail]));
  const focused = document.activeElement?.closest?.("#classes li")?.dataset.label;
  find("classes").replaceChildren(...[...new Set(shown)].map((label) => card(label, thumbnails.get(label))));
  if (focused !== undefined) {
    [...find("classes").children].find((one) => one.dataset.label === focused)?.querySelector("input")?.focus();
  }
}

function card(label, thumbnail) {
  const count = state.corrections.get(label) ?? 0;
  const isNew = !state.about?.labels.includes(label);
  const picture = thumbnail ? el("img", { src: thumbnail, alt: "" }) : null;
  const parts = [
    el("div", { class: "picture" }, picture ?? el("span", { "aria-hidden": "true" }, isNew ? "new" : "")),
    el("b", {}, label),
  ];
  if (count) parts.push(el("span", { class: "soft small" }, counted(count, "photo kept", "photos kept")));
  if (!state.corrects) return el("li", { class: "class", "data-label": label }, parts);

  const input = el("input", {
    class: "unseen",
    type: "file",
    multiple: true,
    accept: "image/*",
    "aria-label": `Add photos of ${label}`,
    change: (event) => take(label, [...event.target.files]),
  });
  parts.push(el("label", { class: "button quiet" }, input, "Add photos…"));
  if (problems.has(label)) parts.push(trouble(label));
  const target = el("li", { class: "class target", "data-label": label }, parts);
  const takes = (event) => hasFiles(event) || event.dataTransfer.types.includes(DRAGGED);
  acceptDrops(target, takes, async (event) => {
    const number = event.dataTransfer.getData(DRAGGED);
    if (number) {
      const one = item(number);
      if (one) await correct(one, label);
    } else await take(label, await filesOf(event.dataTransfer));
  });
  return target;
}

function trouble(label) {
  const rows = problems.get(label).map(({ name, error }) => el("li", {}, el("b", {}, `${name}: `), error));
  return el("ul", { class: "error small" }, rows);
}

async function take(label, files) {
  if (!files.length) return;
  say("class-status", `Sending ${counted(files.length, "photo")} of ${label}…`);
  const onProgress = (done, total) => done < total && say("class-status", `${done} of ${total} photos of ${label} sent`);
  problems.delete(label);
  const kept = await keep(label, files, onProgress);
  const failed = kept.filter(({ error }) => error);
  if (failed.length) {
    problems.set(label, failed);
    drawClasses();
  }
  const end = failed.length ? `, ${failed.length} not` : "";
  say("class-status", `${counted(kept.length - failed.length, "photo")} kept as ${label}${end}.`);
}
