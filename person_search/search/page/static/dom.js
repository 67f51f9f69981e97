// SPDX-License-Identifier: Apache-2.0
// DOM helpers. External text is inserted as text, never as HTML.

export function byId(id) {
  return document.getElementById(id);
}

// element("li", {class: "match"}, child, "text", …): on<Event> adds a listener, true an empty
// attribute.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2).toLowerCase(), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function place(node, box, width, height) {
  const [x1, y1, x2, y2] = box;
  node.style.left = `${(100 * x1) / width}%`;
  node.style.top = `${(100 * y1) / height}%`;
  node.style.width = `${(100 * (x2 - x1)) / width}%`;
  node.style.height = `${(100 * (y2 - y1)) / height}%`;
}

export function area([x1, y1, x2, y2]) {
  return (x2 - x1) * (y2 - y1);
}
