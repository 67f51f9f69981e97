// SPDX-License-Identifier: Apache-2.0
// The picture on which a person is marked: detected persons are buttons; a box can be drawn with
// the mouse (drag), a finger or pen ("Draw a box", then drag), the arrow keys, or as four numbers.

import { cropUrl, imageUrl } from "./api.js";
import { Corners, SMALLEST } from "./corners.js";
import { area, byId, element, place } from "./dom.js";

const DRAG = 6; // pixels of the screen from which on a press is a drag
const STEP = 0.02; // of the longer side, per arrow key

export class Picker {
  // onPick(choice or null): {picture, person} or {picture, box}, and what to show of it
  constructor(onPick) {
    this.onPick = onPick;
    this.picture = null;
    this.box = null; // that was drawn
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

  show(picture) {
    this.picture = picture;
    const image = byId("picture");
    image.src = imageUrl(picture.id, 1600);
    image.alt = `The picture ${picture.name}`;
    byId("persons").replaceChildren(...this.buttons());
    this.setDrawing(false);
    this.setBox(null);
    byId("hint").textContent = picture.persons.length
      ? `${picture.name}: ${picture.persons.length} detected. Pick one, or draw a box.`
      : `${picture.name}: nobody was detected. Draw a box around the person.`;
    this.corners.limit(picture.width, picture.height);
    this.fit();
  }

  // Buttons in the order from left to right, which is that of the Tab key; small ones lie on top.
  buttons() {
    const { width, height, persons } = this.picture;
    const bySize = [...persons].sort((a, b) => area(b.box) - area(a.box));
    const fromLeft = [...persons].sort((a, b) => a.box[0] - b.box[0]);
    return fromLeft.map((one, i) => {
      const percent = Math.round(100 * one.score);
      const button = element("button", {
        type: "button",
        class: "person",
        "aria-pressed": "false",
        "aria-label": `Person ${i + 1} of ${persons.length} from the left, detected with ${percent} %`,
        title: `detected with ${percent} %`,
        "data-person": one.person,
        onClick: () => this.pick(one.person),
      });
      place(button, one.box, width, height);
      button.style.zIndex = bySize.indexOf(one) + 1;
      return button;
    });
  }

  // As large as the column and 70 % of the window allow, without changing its shape.
  fit() {
    if (!this.picture) return;
    const { width, height } = this.picture;
    const room = this.stage.parentElement.clientWidth - 34;
    const scale = Math.min(room / width, (0.7 * window.innerHeight) / height, 4);
    this.stage.style.width = `${Math.max(1, Math.round(width * scale))}px`;
    this.stage.style.height = `${Math.max(1, Math.round(height * scale))}px`;
  }

  pick(person) {
    const one = this.picture.persons.find((other) => other.person === person);
    this.setBox(null);
    this.press = null;
    this.markPressed(person);
    this.corners.fill(one.box);
    this.onPick({ picture: this.picture.id, person }, this.cropOf(one.box), this.picture.name);
  }

  // Nobody is marked any more.
  clear() {
    this.setBox(null);
    this.markPressed(-1);
  }

  cropOf(box) {
    return cropUrl(this.picture.id, box);
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
      const { width, height } = this.picture; // something to start from, for the keyboard
      this.setBox([0.4 * width, 0.25 * height, 0.6 * width, 0.75 * height]);
    }
    if (on) this.done(); // what is to be seen is what is searched for
    if (on) byId("drawn").focus({ preventScroll: true });
  }

  setBox(box) {
    this.box = box;
    byId("drawn").hidden = !box;
    if (box) place(byId("drawn"), box, this.picture.width, this.picture.height);
    this.corners.fill(box);
  }

  // What was marked before a drag that comes to nothing, a detected person included.
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
    this.onPick({ picture: this.picture.id, box }, this.cropOf(box), this.picture.name);
  }

  where(event) {
    const bounds = this.stage.getBoundingClientRect();
    const { width, height } = this.picture;
    const x = ((event.clientX - bounds.left) / bounds.width) * width;
    const y = ((event.clientY - bounds.top) / bounds.height) * height;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }

  pressed(event) {
    if (this.press?.dragged && !this.press.over && this.press.id !== event.pointerId) return;
    const drawing = this.stage.classList.contains("drawing");
    this.press = null;
    if (event.button !== 0 || (event.pointerType !== "mouse" && !drawing)) return; // it may scroll
    this.press = { id: event.pointerId, at: this.where(event), from: [event.clientX, event.clientY] };
    this.press.dragged = false;
  }

  moved(event) {
    const press = this.press;
    if (!press || press.id !== event.pointerId || press.over) return;
    if (!event.buttons) {
      this.cancel(); // let go outside, where nobody has told us
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
    this.press.over = true; // the click that follows a drag is not one
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
    const { width, height } = this.picture;
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
    const at = this.box.map((value) => Math.round(value)); // for who does not see it
    byId("status").textContent = `Box from ${at[0]}, ${at[1]} to ${at[2]}, ${at[3]}.`;
  }

  typed(box) {
    this.setBox(box);
    this.done();
  }
}
