// Photos come in: dropped, pasted, chosen or taken.

import { el, find } from "./dom.js";

// The files of a drop, those within folders too.
export async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file && !file.name.startsWith(".")) found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // A reader gives a hundred at a time, and none at the end.
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return;
    for (const one of some) await collect(one, found);
  }
}

// Lets an element take files, and whatever else `takes` says of a drag; `onDrop` gets the event.
export function acceptDrops(element, takes, onDrop) {
  element.addEventListener("dragover", (event) => {
    if (!takes(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    element.classList.add("over");
  });
  element.addEventListener("dragleave", (event) => {
    if (!element.contains(event.relatedTarget)) element.classList.remove("over"); // else it is over what is inside
  });
  element.addEventListener("drop", (event) => {
    if (!takes(event)) return;
    event.preventDefault();
    event.stopPropagation();
    onDrop(event);
  });
}

// A drop ends the drag for all elements, whichever has taken it.
function endDrag() {
  for (const element of document.querySelectorAll(".over")) element.classList.remove("over");
}

export const hasFiles = (event) => event.dataTransfer.types.includes("Files");

// Calls `onFiles` with the files of every way in.
export function open(onFiles) {
  for (const end of ["drop", "dragend"]) document.addEventListener(end, endDrag, true);
  // The whole page takes them: whoever misses the frame means it all the same.
  acceptDrops(document.documentElement, hasFiles, async (event) => onFiles(await filesOf(event.dataTransfer)));
  acceptDrops(find("drop"), hasFiles, async (event) => onFiles(await filesOf(event.dataTransfer)));
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    onFiles(files);
  });
  find("files").addEventListener("change", (event) => {
    onFiles([...event.target.files]);
    event.target.value = "";
  });
  find("camera").addEventListener("click", () => openCamera(onFiles));
}

async function openCamera(onFiles) {
  if (!navigator.mediaDevices?.getUserMedia) {
    // Browsers let a page look through the camera only over HTTPS; telephones take a photo and hand it over.
    const input = el("input", { type: "file", accept: "image/*", capture: "environment" });
    input.addEventListener("change", () => onFiles([...input.files]));
    input.click();
    return;
  }
  const [dialog, video, text, shoot] = ["camera-dialog", "video", "camera-text", "shoot"].map(find);
  let stream = null;
  let taken = 0;
  const closed = new AbortController();
  const { signal } = closed;
  dialog.addEventListener(
    "close",
    () => {
      closed.abort();
      stream?.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
    },
    { once: true },
  );
  find("camera-close").addEventListener("click", () => dialog.close(), { signal });
  shoot.disabled = true;
  shoot.addEventListener("click", () => take(), { signal });
  text.textContent = "Waiting for the camera: the browser may ask whether this page may use it.";
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (signal.aborted) {
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    video.srcObject = stream;
    await video.play();
    text.textContent = "";
    shoot.disabled = false;
    shoot.focus();
  } catch (error) {
    if (!signal.aborted) text.textContent = `There is no camera to use: ${error.message}`;
  }

  function take() {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        taken++;
        text.textContent = `Photo ${taken} is taken.`;
        onFiles([new File([blob], `camera-${taken}.jpg`, { type: "image/jpeg" })]);
      },
      "image/jpeg",
      0.92,
    );
  }
}
