// SPDX-License-Identifier: Apache-2.0
// The ranked scenes, and one of them enlarged.

import { cropUrl, imageUrl } from "./api.js";
import { byId, element } from "./dom.js";

const CHANGED = "The image has changed since it was indexed; the box may not fit.";

export class Results {
  // onAgain(match) searches for the person of a match.
  constructor(onAgain) {
    this.onAgain = onAgain;
    this.matches = [];
    this.shown = 0;
    const dialog = byId("large");
    byId("close").addEventListener("click", () => dialog.close());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside the image
    });
  }

  show({ matches, searched, seconds }) {
    this.matches = matches;
    byId("found").hidden = false;
    byId("save").hidden = !matches.length;
    byId("found-title").textContent = matches.length ? "Most similar first" : "No person was found.";
    const count = `${matches.length} ${matches.length === 1 ? "match" : "matches"}`;
    byId("summary").textContent = `Searched in ${searched}; ${count} in ${Math.ceil(1000 * seconds)} ms.`;
    byId("matches").replaceChildren(...matches.map((match, i) => this.card(match, i)));
    byId("found-title").focus({ preventScroll: true });
    byId("found").scrollIntoView({ behavior: "instant", block: "start" });
    return `${count} found.`;
  }

  card(match, i) {
    const alt = `Rank ${match.rank}: a person in ${match.name}, similarity ${match.similarity}`;
    const bar = element("i");
    bar.style.width = `${Math.round(100 * Math.min(Math.max(match.similarity, 0), 1))}%`;
    const scene = element("img", {
      class: "scene", alt, loading: "lazy", src: imageUrl(match.image, 720, match.box),
    });
    const crop = element("img", {
      class: "crop", alt: "The same person, enlarged", loading: "lazy",
      src: cropUrl(match.image, match.box),
    });
    const images = element(
      "button",
      { type: "button", class: "images", title: "Enlarge", onClick: () => this.open(i) },
      scene,
      crop,
    );
    const again = element(
      "button", { type: "button", class: "again", onClick: () => this.onAgain(match) },
      "Search for this person",
    );
    scene.addEventListener("error", () => {
      const why = match.changed ? CHANGED : "The image is no longer readable.";
      images.replaceWith(element("p", { class: "gone" }, why));
      again.remove();
    });
    return element(
      "li",
      {},
      element("h3", { class: "title" }, `${match.rank}.`,
        element("span", {}, `similarity ${match.similarity.toFixed(3)}`)),
      element("div", { class: "bar", "aria-hidden": "true" }, bar),
      images,
      this.facts(match),
      again,
    );
  }

  facts(match) {
    const known = [
      ["image", match.name],
      ["time", match.time],
      ["seen", match.seen],
      ["camera", match.camera],
      ["detection", match.score.toFixed(2)],
      ["note", match.changed && CHANGED],
    ].filter(([, value]) => value);
    return element(
      "dl",
      {},
      ...known.flatMap(([name, value]) => [
        element("dt", {}, name),
        element("dd", {}, value),
      ]),
    );
  }

  open(i) {
    this.shown = i;
    this.step(0);
    byId("large").showModal();
  }

  step(by) {
    const i = this.shown + by;
    if (i < 0 || i >= this.matches.length) return;
    this.shown = i;
    const match = this.matches[i];
    byId("large-title").textContent =
      `${match.rank}. ${match.name}, similarity ${match.similarity.toFixed(3)}`;
    byId("large-image").src = imageUrl(match.image, 2048, match.box);
    byId("large-image").alt = `The person in ${match.name}`;
    byId("large-note").textContent = match.changed ? CHANGED : "";
    byId("large-note").hidden = !match.changed;
    const before = document.activeElement; // a disabled button loses the focus
    byId("previous").disabled = i === 0;
    byId("next").disabled = i === this.matches.length - 1;
    if (before.disabled) {
      [byId("previous"), byId("next"), byId("close")].find((button) => !button.disabled).focus();
    }
  }
}
