// Photos that the user gives a class: kept by the service for the next training.

import { ask, path } from "./api.js";
import { form, hopeless } from "./queue.js";
import { state } from "./state.js";

const FILES = 16; // in a request

// Keeps files as photos of the class `label`. Returns for each {name, label, path} or {name,
// error}; the label is the service's, where one that is there differs by case alone. Calls `onProgress`.
export async function keep(label, files, onProgress = () => {}) {
  const kept = [];
  const bytes = 0.9 * state.service.limits.max_request_mb * 2 ** 20;
  for (let start = 0; start < files.length; ) {
    const batch = [];
    let size = 0;
    while (start < files.length && batch.length < FILES && (!batch.length || size + files[start].size <= bytes)) {
      const file = files[start++];
      const problem = hopeless(file);
      if (problem) kept.push({ name: file.name, error: problem });
      else {
        batch.push({ file });
        size += file.size;
      }
    }
    if (batch.length) {
      try {
        const answer = await ask("POST", path(["v1", "corrections"], { label }), form(batch));
        kept.push(...answer.images.map((image) => ({ ...image, label: answer.label })));
      } catch (error) {
        kept.push(...batch.map(({ file }) => ({ name: file.name, error: error.message })));
      }
    }
    onProgress(Math.min(start, files.length), files.length);
  }
  await state.refreshCorrections();
  state.changed();
  return kept;
}

// Takes a photo back.
export async function forget(label, file) {
  await ask("DELETE", path(["v1", "corrections"], { label, path: file }));
  await state.refreshCorrections();
  state.changed();
}
