// SPDX-License-Identifier: Apache-2.0
// Groups of persons: select crops, merge, split, reject, rename. The server saves every action.

import { label, labelEdit, labelUrl } from "./api.js";
import { byId, element } from "./dom.js";

const SHOWN = 60; // crops of a group that are shown at first

let facts = null;
let groupOfPerson = new Map();
const selected = new Set(); // persons
const opened = new Set(); // names of groups of which all crops are shown
const crops = new Map(); // person -> button; reused, so that images stay

// ---- the groups ----------------------------------------------------------------------------------

function crop(person) {
  if (!crops.has(person)) {
    const address = labelUrl(facts.edition, person);
    const image = element("img", { src: address, alt: `Person ${person}`, loading: "lazy" });
    const button = element(
      "button",
      { type: "button", class: "crop-of", "data-person": person, onClick: () => toggle(person) },
      image,
    );
    crops.set(person, button);
  }
  const button = crops.get(person);
  button.setAttribute("aria-pressed", String(selected.has(person)));
  return button;
}

function section(key, title, persons, notes, isChecked) {
  const shown = opened.has(key) ? persons : persons.slice(0, SHOWN);
  const more = persons.length - shown.length;
  const show = () => {
    opened.add(key);
    render();
  };
  return element(
    "section",
    { class: isChecked ? "group checked" : "group", "data-group": key },
    element(
      "div",
      { class: "head" },
      element("h2", {}, title),
      element("span", { class: "quiet" }, `${persons.length}${isChecked ? ", checked" : ""}`),
      ...notes.map((note) => element("span", { class: "note" }, note)),
      element(
        "button",
        { type: "button", class: "all", onClick: () => selectAll(persons) },
        "Select all",
      ),
    ),
    element("div", { class: "crops" }, ...shown.map(crop)),
    more > 0
      ? element("p", {}, element("button", { type: "button", onClick: show }, `Show ${more} more`))
      : null,
  );
}

function count(number, noun, nouns = `${noun}s`) {
  return `${number} ${number === 1 ? noun : nouns}`;
}

function render() {
  const focus = document.activeElement?.dataset?.person;
  const { groups, unlabeled, removed, images, file } = facts;
  const done = groups.filter((group) => group.checked).length;
  byId("summary").textContent =
    `${count(groups.length, "group")} (${done} checked), ` +
    `${count(unlabeled.length, "person")} without identity, ` +
    `${count(removed, "box", "boxes")} removed; ${count(images, "image")}. Saved in ${file}.`;
  const sections = groups.map((group) =>
    section(
      `g ${group.name}`, group.name, group.persons,
      group.twice ? ["An image is in this group twice."] : [], group.checked,
    ),
  );
  if (unlabeled.length) sections.push(section("unlabeled", "Without identity", unlabeled, [], false));
  byId("groups").replaceChildren(...sections);
  byId("count").textContent = `${selected.size} selected`;
  byId("bar").querySelector("[data-action=undo]").disabled = !facts.undo;
  if (focus !== undefined) crops.get(Number(focus))?.focus({ preventScroll: true });
}

function toggle(person) {
  if (!selected.delete(person)) selected.add(person);
  render();
}

function selectAll(persons) {
  const all = persons.every((person) => selected.has(person));
  for (const person of persons) selected[all ? "delete" : "add"](person);
  render();
}

function groupOf(person) {
  return groupOfPerson.get(person);
}

function take(answer) {
  facts = answer;
  groupOfPerson = new Map(
    facts.groups.flatMap((group) => group.persons.map((person) => [person, group])),
  );
}

// One person for each group, and those without a group.
function ofEachGroup(persons) {
  const seen = new Set();
  return persons.filter((person) => {
    const group = groupOf(person);
    return !group || (!seen.has(group) && seen.add(group));
  });
}

// ---- actions -------------------------------------------------------------------------------------

function say(text, failed = false) {
  byId("status").textContent = failed ? "" : text;
  byId("error").textContent = failed ? text : "";
  byId("error").hidden = !failed;
}

async function send(action, persons, name = "", done = "") {
  try {
    take(await labelEdit({ action, persons, name }));
  } catch (error) {
    say(error.message, true);
    return;
  }
  selected.clear();
  render();
  say(done);
}

// The selected persons, or the one that has the focus.
function chosen() {
  if (selected.size) return [...selected];
  const focus = document.activeElement?.dataset?.person;
  return focus === undefined ? [] : [Number(focus)];
}

const DONE = {
  merge: "Merged.",
  split: "Made a new group.",
  reject: "Moved to the persons without identity.",
  remove: "Removed.",
  check: "Marked.",
};

function act(action) {
  const persons = chosen();
  if (action === "undo") {
    if (facts.undo) send("undo", [], "", "Undone.");
  } else if (!persons.length) {
    say("Select a person first.", true);
  } else if (action === "merge" && new Set(persons.map(groupOf)).size < 2) {
    say("Select persons of two groups or more to merge the groups.", true);
  } else if (action === "view") {
    byId("large-image").src = labelUrl(facts.edition, persons[0], true);
    byId("large-image").alt = `The image of person ${persons[0]}`;
    byId("large").showModal();
  } else if (action === "rename") {
    rename(persons[0]);
  } else {
    const isOfGroups = action === "merge" || action === "check";
    send(action, isOfGroups ? ofEachGroup(persons) : persons, "", DONE[action]);
  }
}

function rename(person) {
  const group = groupOf(person);
  if (!group) {
    say("Make a group of the person first.", true);
    return;
  }
  byId("name").value = group.name;
  byId("naming").dataset.person = person;
  byId("naming").showModal();
  byId("name").select();
}

function renamed() {
  byId("naming").close();
  send("rename", [Number(byId("naming").dataset.person)], byId("name").value, "Renamed.");
}

// ---- events --------------------------------------------------------------------------------------

const KEYS = {
  m: "merge", s: "split", x: "reject", d: "remove", r: "rename", c: "check", v: "view", u: "undo",
};

function move(from, by, isGroup) {
  const all = [...document.querySelectorAll(".crop-of")];
  let at = all.indexOf(from);
  if (isGroup) {
    const groups = [...document.querySelectorAll(".group")];
    const next = groups[groups.indexOf(from.closest(".group")) + by];
    at = all.indexOf(next?.querySelector(".crop-of"));
  } else {
    at += by;
  }
  all[at]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const here = event.target.closest(".crop-of");
  if (event.key === "Escape") {
    selected.clear();
    render();
  } else if (here && event.key.startsWith("Arrow")) {
    const by = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
    move(here, by, event.key === "ArrowUp" || event.key === "ArrowDown");
  } else if (here && event.key === "a") {
    const person = Number(here.dataset.person);
    selectAll(groupOf(person)?.persons ?? facts.unlabeled);
  } else if (KEYS[event.key] && facts) {
    act(KEYS[event.key]);
  } else {
    return;
  }
  event.preventDefault();
});
byId("bar").addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus
byId("bar").addEventListener("click", (event) => {
  const action = event.target.closest("[data-action]")?.dataset.action;
  if (action) act(action);
});
byId("name-ok").addEventListener("click", renamed);
byId("name-cancel").addEventListener("click", () => byId("naming").close());
byId("name").addEventListener("keydown", (event) => {
  if (event.key === "Enter") renamed();
});
byId("close").addEventListener("click", () => byId("large").close());

try {
  take(await label());
  render();
} catch (error) {
  byId("summary").textContent = "The groups are not open.";
  say(error.message, true);
}
