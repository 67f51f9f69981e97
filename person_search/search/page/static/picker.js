// SPDX-License-Identifier: Apache-2.0
// The image in which a person is marked. Detected persons are buttons; a box is drawn with the
// mouse (drag), a finger or pen ("Draw a box", then drag), the arrow keys, or typed.

import { cropUrl, imageUrl } from "./api.js";
import { Corners, SMALLEST } from "./corners.js";
import { area, byId, element, place } from "./dom.js";

const DRAG = 6; // screen pixels that turn a press into a drag
const STEP = 0.02; // per arrow key, relative to the longer side

export class Picker {
  // onPick(choice, crop, name): choice is {image, person} or {image, box}.
  constructor(onPick) {
    this.onPick = onPick;
    this.image = null;
    this.box = null; // the drawn box
    this.press = null;
    this.stage = byId("stage");
    this.corners = new Corners((box) => this.typed(box));
    this.stage.addEventListener("pointerdown", (event) => this.pressed(event));
    this.stage.addEventListener("pointermove", (event) => this.moved(event));
    this.stage.addEventListener("pointerup", (event) => this.released(event));
    this.stage.addEventListener("pointercancel", (event) => {
      if (event.pointerId === this.press?.id) this.cancel();
    });
    this.stage.addEventListener("click", (event) => this.swallow(event), true);
    this.stage.addEventListener("dragstart", (event) => event.preventDefault());
    byId("draw").addEventListener("click", () => this.toggleDrawing());
    byId("drawn").addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => this.fit());
  }

  show(image) {
    this.image = image;
    byId("scene").src = imageUrl(image.id, 1600);
    byId("scene").alt = `The image ${image.name}`;
    byId("persons").replaceChildren(...this.buttons());
    this.setDrawing(false);
    this.setBox(null);
    const found = image.persons.length
      ? `${image.persons.length} detected. Pick one, or draw a box.`
      : "no person was detected. Draw a box around the person.";
    const changed = image.changed ? " The image has changed since it was indexed." : "";
    byId("hint").textContent = `${image.name}: ${found}${changed}`;
    this.corners.limit(image.width, image.height);
    this.fit();
  }

  // Buttons from left to right, the order of the Tab key; smaller ones on top.
  buttons() {
    const { width, height, persons } = this.image;
    const bySize = [...persons].sort((a, b) => area(b.box) - area(a.box));
    const fromLeft = [...persons].sort((a, b) => a.box[0] - b.box[0]);
    return fromLeft.map((one, i) => {
      const percent = Math.round(100 * one.score);
      const button = element("button", {
        type: "button",
        class: "person",
        "aria-pressed": "false",
        "aria-label": `Person ${i + 1} of ${persons.length} from the left, score ${percent} %`,
        title: `score ${percent} %`,
        "data-person": one.person,
        onClick: () => this.pick(one.person),
      });
      place(button, one.box, width, height);
      button.style.zIndex = bySize.indexOf(one) + 1;
      return button;
    });
  }

  // Fits the image into the column and 70 % of the window height.
  fit() {
    if (!this.image) return;
    const { width, height } = this.image;
    const room = this.stage.parentElement.clientWidth - 34;
    const scale = Math.min(room / width, (0.7 * window.innerHeight) / height, 4);
    this.stage.style.width = `${Math.max(1, Math.round(width * scale))}px`;
    this.stage.style.height = `${Math.max(1, Math.round(height * scale))}px`;
  }

  pick(person) {
    const one = this.image.persons.find((other) => other.person === person);
    this.setBox(null);
    this.press = null;
    this.markPressed(person);
    this.corners.fill(one.box);
    this.onPick({ image: this.image.id, person }, this.cropOf(one.box), this.image.name);
  }

  // Removes the mark.
  clear() {
    this.setBox(null);
    this.markPressed(-1);
  }

  cropOf(box) {
    return cropUrl(this.image.id, box);
  }

  markPressed(person) {
    for (const button of byId("persons").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.person) === person));
    }
  }

  // ---- drawing -----------------------------------------------------------------------------------

  setDrawing(on) {
    byId("draw").setAttribute("aria-pressed", String(on));
    this.stage.classList.toggle("drawing", on);
  }

  toggleDrawing() {
    const on = byId("draw").getAttribute("aria-pressed") !== "true";
    this.setDrawing(on);
    if (on && !this.box) {
      const { width, height } = this.image; // an initial box for the keyboard
      this.setBox([0.4 * width, 0.25 * height, 0.6 * width, 0.75 * height]);
    }
    if (on) this.done(); // the visible box is searched for
    if (on) byId("drawn").focus({ preventScroll: true });
  }

  setBox(box) {
    this.box = box;
    byId("drawn").hidden = !box;
    if (box) place(byId("drawn"), box, this.image.width, this.image.height);
    this.corners.fill(box);
  }

  // Restores the mark from before a cancelled drag.
  restore({ box, numbers }) {
    this.setBox(box);
    this.corners.fill(numbers);
  }

  done() {
    if (!this.box) return;
    const box = this.box.map((value) => Math.round(value));
    if (box[2] - box[0] < SMALLEST || box[3] - box[1] < SMALLEST) {
      if (this.press) this.restore(this.press.before);
      return;
    }
    this.setBox(box);
    this.markPressed(-1);
    this.onPick({ image: this.image.id, box }, this.cropOf(box), this.image.name);
  }

  where(event) {
    const bounds = this.stage.getBoundingClientRect();
    const { width, height } = this.image;
    const x = ((event.clientX - bounds.left) / bounds.width) * width;
    const y = ((event.clientY - bounds.top) / bounds.height) * height;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }

  pressed(event) {
    if (this.press?.dragged && !this.press.over && this.press.id !== event.pointerId) return;
    const drawing = this.stage.classList.contains("drawing");
    this.press = null;
    if (event.button !== 0 || (event.pointerType !== "mouse" && !drawing)) return; // may be scrolling
    this.press = { id: event.pointerId, at: this.where(event), from: [event.clientX, event.clientY] };
    this.press.dragged = false;
  }

  moved(event) {
    const press = this.press;
    if (!press || press.id !== event.pointerId || press.over) return;
    if (!event.buttons) {
      this.cancel(); // released outside, without an event
      return;
    }
    const far = Math.hypot(event.clientX - press.from[0], event.clientY - press.from[1]);
    if (!press.dragged && far < DRAG) return;
    if (!press.dragged) {
      this.stage.setPointerCapture(event.pointerId);
      press.before = { box: this.box, numbers: this.corners.shown };
    }
    press.dragged = true;
    const [x, y] = this.where(event);
    const [u, v] = press.at;
    this.setBox([Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)]);
  }

  released(event) {
    if (this.press?.id !== event.pointerId) return;
    this.press.over = true; // the click after a drag is ignored
    if (this.press.dragged) this.done();
  }

  cancel() {
    if (this.press?.dragged && !this.press.over) this.restore(this.press.before);
    this.press = null;
  }

  swallow(event) {
    if (this.press?.dragged && event.detail > 0) {
      event.stopPropagation();
      event.preventDefault();
    }
    this.press = null;
  }

  key(event) {
    const { width, height } = this.image;
    const step = Math.max(SMALLEST, Math.round(STEP * Math.max(width, height)));
    const [dx, dy] = {
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, -step],
      ArrowDown: [0, step],
    }[event.key] ?? [0, 0];
    if (event.key === "Enter") this.done();
    if (!dx && !dy) return;
    event.preventDefault();
    let [x1, y1, x2, y2] = this.box;
    if (event.shiftKey) {
      x2 = Math.min(Math.max(x2 + dx, x1 + step), width);
      y2 = Math.min(Math.max(y2 + dy, y1 + step), height);
    } else {
      const x = Math.min(Math.max(dx, -x1), width - x2);
      const y = Math.min(Math.max(dy, -y1), height - y2);
      [x1, y1, x2, y2] = [x1 + x, y1 + y, x2 + x, y2 + y];
    }
    this.setBox([x1, y1, x2, y2]);
    this.done();
    const at = this.box.map((value) => Math.round(value)); // for screen readers
    byId("status").textContent = `Box from ${at[0]}, ${at[1]} to ${at[2]}, ${at[3]}.`;
  }

  typed(box) {
    this.setBox(box);
    this.done();
  }
}
