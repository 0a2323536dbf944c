// Making and finding elements. Text only ever becomes text nodes: a label may hold anything, HTML too.

export const find = (id) => document.getElementById(id);

// An element; attributes that are functions listen to the event of that name, and those that are false are left out.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Says something to screen readers, in the live region of that id.
export function say(id, text) {
  find(id).textContent = text;
}

export function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)} %`;
}

// What is above 99.95 % is not certain, and what is below 0.05 % is not impossible.
export function probability(share) {
  if (share >= 0.9995 && share < 1) return "> 99.9 %";
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return percent(share);
}

export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// A bar of that length behind a number; the number itself is beside it, as text.
export function bar(share, kind = "") {
  const filled = el("span", { class: `filled ${kind}` });
  filled.style.inlineSize = `${100 * Math.max(0, Math.min(1, share))}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, filled);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no clipboard but this one.
    const area = el("textarea", { class: "copied", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
