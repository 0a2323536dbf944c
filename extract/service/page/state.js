// What the page knows of the service. Modules that draw listen for "change".

import { ask, path } from "./api.js";

class State extends EventTarget {
  service = null; // what GET /v1 answered
  head = null; // the name of the head that is asked; null while there is none
  details = null; // what GET /v1/heads/{head} answered; null where there is none
  corrections = new Map(); // by label the photos that are kept in the corrections' folder
  added = []; // labels that the user has typed and that have no photos yet

  get about() {
    return this.service?.heads.find((head) => head.name === this.head) ?? null;
  }

  // Whether the cache has photos to compare others with.
  get hasPhotos() {
    return this.service.photos > 0;
  }

  get corrects() {
    return Boolean(this.service?.corrects);
  }

  // All labels that a photo may be given: the head's own, in its order, and those after them that are new.
  get labels() {
    return [...new Set([...(this.about?.labels ?? []), ...this.corrections.keys(), ...this.added])];
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  async refresh() {
    this.service = await ask("GET", "v1");
    if (!this.about) this.head = this.service.heads[0]?.name ?? null;
    await Promise.all([this.refreshHead(), this.refreshCorrections()]);
    this.changed();
  }

  async refreshHead() {
    this.details = this.head === null ? null : await ask("GET", path(["v1", "heads", this.head])).catch(() => null);
  }

  async refreshCorrections() {
    if (!this.corrects) return;
    const { labels } = await ask("GET", "v1/corrections");
    this.corrections = new Map(labels.map(({ label, count }) => [label, count]));
  }

  choose(head) {
    this.head = head;
    this.details = null;
    this.changed();
    this.refreshHead().then(() => this.changed());
  }
}

export const state = new State();
