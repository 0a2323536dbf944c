// The same request as a command and as a program, to copy.

import { hasToken, path, place } from "./api.js";
import { copy, find, say } from "./dom.js";
import { latestName } from "./results.js";
import { state } from "./state.js";

export function open() {
  state.addEventListener("change", draw);
  find("results").addEventListener("answered", draw);
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const done = await copy(find(button.dataset.of).textContent);
      button.textContent = done ? "Copied" : "Not copied";
      say("copy-status", done ? "Copied." : "This browser does not let the page copy; select the text instead.");
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
}

function draw() {
  if (!state.service) return;
  const url = place(
    state.head === null ? "v1/bottlenecks" : path(["v1", "classify", state.head], { top_k: 5 }),
  );
  const file = latestName() ?? "photo.jpg";
  find("curl").textContent = curl(url, file);
  find("python").textContent = python(url, file);
  find("programs").hidden = false;
}

function curl(url, file) {
  const token = hasToken() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return `curl --data-binary ${inShell(`@${file}`)}${token} "${url}"`;
}

// Plain names stay readable; others are quoted, so that a shell takes them as they are.
function inShell(text) {
  return /^[\w@.,+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function python(url, file) {
  const token = hasToken();
  const headers = `{"Content-Type": "application/octet-stream"${token ? ', "Authorization": f"Bearer {token}"' : ""}}`;
  const key = state.head === null ? "bottleneck" : "labels";
  return [
    ...(token ? ["import os"] : []),
    "import json",
    "from urllib.request import Request, urlopen",
    "",
    `url = ${JSON.stringify(url)}`,
    ...(token ? ['token = os.environ["TOKEN"]'] : []),
    `with open(${JSON.stringify(file)}, "rb") as photo:`,
    `    request = Request(url, photo.read(), ${headers})`,
    "with urlopen(request) as response:",
    "    [answer] = json.load(response)[\"images\"]",
    `print(answer["${key}"])`,
  ].join("\n");
}
