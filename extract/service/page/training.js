// A new head from the cache and the corrections: started, watched, compared with the old one, and put in its place.

import { ask, path } from "./api.js";
import { counted, el, find, percent, say } from "./dom.js";
import { askAgain } from "./results.js";
import { state } from "./state.js";

const EVERY = 1000; // milliseconds between two looks
let training = null; // what GET /v1/training answered
let problem = null; // why a request failed
let timer = 0;

export async function open() {
  state.addEventListener("change", draw);
  find("train").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
}

// Finds out whether a training runs or waits for its verdict, also one that another page has started.
export async function look() {
  clearTimeout(timer);
  if (!state.corrects) return;
  try {
    training = await ask("GET", "v1/training");
  } catch (error) {
    problem = error.message;
  }
  draw();
  if (training?.state === "running") timer = setTimeout(look, EVERY);
}

async function start() {
  await request("POST", path(["v1", "training"], { head: name() }));
}

function name() {
  return state.head ?? find("train-name").value.trim();
}

async function request(method, where) {
  problem = null;
  try {
    await ask(method, where);
  } catch (error) {
    problem = error.message;
  }
  await look();
  return problem === null;
}

function draw() {
  const { corrects, head, corrections } = state;
  find("training").hidden = !corrects;
  if (!corrects) return;
  const kept = [...corrections.values()].reduce((sum, count) => sum + count, 0);
  const isRunning = training?.state === "running";
  find("training-title").textContent = head === null ? "Train" : "Train again";
  find("name-line").hidden = head !== null;
  find("train-name").disabled = head !== null;
  find("training-text").textContent =
    head === null
      ? `${counted(kept, "photo")} in ${counted(corrections.size, "class", "classes")} so far; it takes two classes.`
      : `${counted(kept, "photo")} kept as corrections. A new classifier is fitted on them and on the photos that it ` +
        "knows already, beside the old one, which answers until you swap.";
  find("train-button").textContent = head === null ? "Train" : `Train ${head} again`;
  find("train-button").disabled = isRunning;
  find("train-button").classList.toggle("busy", isRunning);
  drawState();
  drawResult();
  const lines = training?.lines ?? [];
  find("output").hidden = !lines.length;
  find("lines").textContent = lines.join("\n");
}

function drawState() {
  let text = "";
  if (problem) text = problem;
  else if (training?.state === "running") text = `Training ${training.head}…`;
  else if (training?.state === "failed") text = `The training failed: ${training.error}`;
  else if (training?.state === "done") text = `${training.head} is trained, after ${training.seconds.toFixed(1)} s.`;
  find("train-status").classList.toggle("error", Boolean(problem) || training?.state === "failed");
  if (find("train-status").textContent !== text) say("train-status", text);
}

function drawResult() {
  const result = find("train-result");
  if (training?.state !== "done" || !training.new) return result.replaceChildren();
  const { old, new: fresh } = training;
  const row = (name, one) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", {}, one.test_accuracy === null ? "not measured" : percent(one.test_accuracy)),
      el("td", {}, (one.test_photos ?? 0).toLocaleString("en")),
    );
  const head = ["", "right", "of test photos"].map((text) => el("th", { scope: "col" }, text));
  const swap = el("button", { type: "button", class: "primary", click: swapIn }, old ? "Swap: use the new one" : "Use it");
  const discard = el("button", { type: "button", click: discardIt }, "Discard it");
  const hadFocus = result.contains(document.activeElement);
  if (hadFocus) return undefined; // nothing has changed since it was drawn
  return result.replaceChildren(
    el(
      "div",
      { class: "wide" },
      el(
        "table",
        { class: "versus" },
        el("caption", { class: "unseen" }, "The old classifier and the new one"),
        el("thead", {}, el("tr", {}, head)),
        el("tbody", {}, old ? row("Old", old) : null, row("New", fresh)),
      ),
    ),
    el("p", { class: "soft" }, sizes(fresh)),
    warnings(training.lines) ?? "",
    el("p", { class: "buttons" }, swap, discard),
  );
}

function sizes(fresh) {
  const count = Array.isArray(fresh.labels) ? fresh.labels.length : fresh.labels;
  const fewer = (fresh.test_photos ?? 0) < 30 ? " So few test photos say little: more photos tell more." : "";
  return `The new one knows ${counted(count, "class", "classes")}.${fewer}`;
}

// What the training warns of, such as classes with few photos.
function warnings(lines) {
  const found = lines.filter((line) => line.startsWith("warning: ")).map((line) => line.slice("warning: ".length));
  return found.length ? el("ul", { class: "warnings soft" }, found.map((text) => el("li", {}, text))) : null;
}

async function swapIn() {
  const { head } = training;
  find("train-button").focus();
  if (!(await request("POST", "v1/training/swap"))) return;
  training = null;
  state.head = head;
  state.added = [];
  await state.refresh();
  say("train-status", `The new ${head} answers from now on.`);
  askAgain();
}

async function discardIt() {
  find("train-button").focus();
  if (await request("POST", "v1/training/discard")) say("train-status", "The new one is discarded.");
}
