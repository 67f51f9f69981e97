// SPDX-License-Identifier: Apache-2.0
// The coordinates of a box as four fields. Errors are shown beside them; the input is kept.

import { byId } from "./dom.js";

export const SMALLEST = 2; // minimum side of a box in pixels of the image

export class Corners {
  // onBox(box) is called when a box was typed.
  constructor(onBox) {
    this.left = byId("x1");
    this.top = byId("y1");
    this.right = byId("x2");
    this.bottom = byId("y2");
    this.fields = [this.left, this.top, this.right, this.bottom];
    this.shown = null; // the box last written into the fields
    for (const field of this.fields) {
      field.addEventListener("change", () => {
        const box = this.check();
        if (box) onBox(box);
      });
      field.addEventListener("input", () => {
        if (this.note) this.check(); // errors appear when the field is left, and vanish at once
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
    this.setNote("");
  }

  // Returns the box, or null with a note about the reason.
  check() {
    const invalid = this.fields.filter((field) => field.validity.badInput);
    const outside = this.fields.filter(
      ({ validity }) => validity.rangeUnderflow || validity.rangeOverflow,
    );
    const missing = this.fields.filter((field) => Number.isNaN(field.valueAsNumber));
    const crossed = [[this.left, this.right], [this.top, this.bottom]].filter(
      ([low, high]) => Math.round(high.valueAsNumber) - Math.round(low.valueAsNumber) < SMALLEST,
    );
    const wrong = [
      ...invalid.map((field) => `“${name(field)}” is not a number.`),
      ...outside.map((field) =>
        `“${name(field)}” is ${field.value}; the image extends from 0 to ${field.max}.`),
      ...crossed.map(([low, high]) =>
        `“${name(high)}” (${high.value}) must exceed ` +
        `“${name(low)}” (${low.value}) by at least ${SMALLEST}.`),
    ];
    if (wrong.length) {
      this.setNote(`${wrong.join(" ")} This box is not used.`, [...invalid, ...outside, ...crossed.flat()]);
    } else if (missing.length && missing.length < this.fields.length) {
      this.setNote(`Missing: ${missing.map(name).join(", ")}.`);
    } else {
      this.setNote("");
      if (!missing.length) return this.fields.map((field) => field.valueAsNumber);
    }
    return null;
  }

  setNote(text, wrong = []) {
    byId("numbers-note").textContent = text;
    byId("numbers-note").classList.toggle("error", wrong.length > 0);
    for (const field of this.fields) {
      if (wrong.includes(field)) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
    }
  }

  // Returns the field to correct before a search; null if the fields show the marked box.
  unfinished() {
    if (!this.note) return null;
    const wrong = (field) => field.hasAttribute("aria-invalid");
    return this.fields.find(wrong) ?? this.fields.find((field) => !field.value);
  }
}

function name(field) {
  return field.labels[0].innerText.trim();
}
