// SPDX-License-Identifier: Apache-2.0
// The four numbers of a box. What is wrong with them is said beside them and stays as it was typed.

import { byId } from "./dom.js";

export const SMALLEST = 2; // pixels of the picture, of a box

export class Corners {
  // onBox(box): a box was typed
  constructor(onBox) {
    this.left = byId("x1");
    this.top = byId("y1");
    this.right = byId("x2");
    this.bottom = byId("y2");
    this.fields = [this.left, this.top, this.right, this.bottom];
    this.shown = null; // the box that was last written into the fields
    for (const field of this.fields) {
      field.addEventListener("change", () => {
        const box = this.check();
        if (box) onBox(box);
      });
      field.addEventListener("input", () => {
        if (this.note) this.check(); // a mistake is told when the field is left, its end at once
      });
    }
  }

  get note() {
    return byId("numbers-note").textContent;
  }

  limit(width, height) {
    for (const field of this.fields) {
      field.min = 0;
      field.max = field === this.left || field === this.right ? width : height;
    }
  }

  fill(box) {
    this.shown = box;
    this.fields.forEach((field, i) => {
      field.value = box ? Math.round(box[i]) : "";
    });
    this.tell("");
  }

  // The box, or null and a word about why there is none.
  check() {
    const no = this.fields.filter((field) => field.validity.badInput);
    const outside = this.fields.filter(
      ({ validity }) => validity.rangeUnderflow || validity.rangeOverflow,
    );
    const absent = this.fields.filter((field) => Number.isNaN(field.valueAsNumber));
    const crossed = [[this.left, this.right], [this.top, this.bottom]].filter(
      ([low, high]) => Math.round(high.valueAsNumber) - Math.round(low.valueAsNumber) < SMALLEST,
    );
    const wrong = [
      ...no.map((field) => `“${name(field)}” is no number.`),
      ...outside.map((field) =>
        `“${name(field)}” is ${field.value}; the picture reaches from 0 to ${field.max}.`),
      ...crossed.map(([low, high]) =>
        `“${name(high)}” (${high.value}) must be at least ${SMALLEST} more than ` +
        `“${name(low)}” (${low.value}).`),
    ];
    if (wrong.length) {
      this.tell(`${wrong.join(" ")} These numbers are not used.`, [...no, ...outside, ...crossed.flat()]);
    } else if (absent.length && absent.length < this.fields.length) {
      this.tell(`Still missing: ${absent.map(name).join(", ")}.`);
    } else {
      this.tell("");
      if (!absent.length) return this.fields.map((field) => field.valueAsNumber);
    }
    return null;
  }

  tell(text, wrong = []) {
    byId("numbers-note").textContent = text;
    byId("numbers-note").classList.toggle("error", wrong.length > 0);
    for (const field of this.fields) {
      if (wrong.includes(field)) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    }
  }

  // The field that has to be looked at before a search; null if the numbers are those of the mark.
  unfinished() {
    if (!this.note) return null;
    const wrong = (field) => field.hasAttribute("aria-invalid");
    return this.fields.find(wrong) ?? this.fields.find((field) => !field.value);
  }
}

function name(field) {
  return field.labels[0].innerText.trim();
}
