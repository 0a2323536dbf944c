// The page: asks the service what it is, and wires the parts together.

import { counted, el, find } from "./dom.js";
import * as classes from "./classes.js";
import * as intake from "./intake.js";
import * as programs from "./programs.js";
import * as queue from "./queue.js";
import * as results from "./results.js";
import { state } from "./state.js";
import * as training from "./training.js";

const AGAIN = 1500; // milliseconds between two tries while the service is loading

function draw() {
  const { service, head, about } = state;
  const backbone = service.backbone?.module ?? "the network";
  const title = head !== null ? "Classify photos" : state.corrects ? "Make a classifier" : "Bottlenecks of photos";
  find("title").textContent = title;
  document.title = head === null ? title : `${title}: ${head}`;
  find("summary").textContent = summary(backbone, head, about);
  find("photos").hidden = head === null;
  find("chooser").hidden = service.heads.length < 2;
  find("head").replaceChildren(
    ...service.heads.map(({ name }) => el("option", { value: name, selected: name === head }, name)),
  );
  const { max_image_mb: megabytes, max_megapixels: megapixels } = service.limits;
  find("limits").textContent = `JPEG, PNG, GIF, BMP or WebP; each up to ${megabytes} MB and ${megapixels} megapixels.`;
}

function summary(backbone, head, about) {
  if (head !== null) {
    const photos = about.test_photos ? `, measured on ${counted(about.test_photos, "photo")}` : "";
    return `${head} tells ${counted(about.labels.length, "class", "classes")} apart with ${backbone}${photos}.`;
  }
  const text =
    `This service has no classifier yet. It answers with bottlenecks: the numbers that ${backbone} makes of a photo, ` +
    "for programs to learn from or to search by.";
  return state.corrects
    ? `${text} Here you can make a classifier from a few photos.`
    : `${text} Start it with --head to have photos classified here, or with --corrections to make a classifier here.`;
}

function complain(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

async function begin() {
  for (;;) {
    try {
      await state.refresh();
      if (state.service.state === "ready") break;
      complain(`The service is not ready: it is ${state.service.state}.`);
    } catch (error) {
      complain(`Something is wrong: ${error.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
  complain("");
  await training.look();
}

function take(files) {
  if (state.head === null) complain("There is no classifier yet: drop the photos on the name of a class.");
  else results.add(files);
}

state.addEventListener("change", draw);
queue.watch(results.progress);
intake.open((files) => state.service && take(files));
classes.open();
programs.open();
training.open();
find("head").addEventListener("change", (event) => {
  state.choose(event.target.value);
  results.askAgain();
});
find("stop").addEventListener("click", queue.stop);
find("clear").addEventListener("click", results.clear);
find("again").addEventListener("click", results.askAgain);
begin();
