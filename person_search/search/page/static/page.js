// SPDX-License-Identifier: Apache-2.0
// Choose a picture, mark the person, search. What is chosen lives in `chosen`; nothing is stored.

import * as api from "./api.js";
import { byId, element } from "./dom.js";
import { Picker } from "./picker.js";
import { Results } from "./results.js";

const PAGE = 24; // pictures of the gallery that are shown at a time

let facts = null;
let chosen = []; // {choice, crop, name}
let adding = false; // the next picture shows the same person
let listed = 0;
let asked = null; // the search behind the results
const latest = {}; // by kind: of several requests only the last one is shown
let running = 0;

const picker = new Picker(pick);
const results = new Results(again);

// ---- telling what happens ------------------------------------------------------------------------

// Whether a request is still the last one of its kind, asked once its answer is there.
function begin(kind) {
  const mine = (latest[kind] = (latest[kind] ?? 0) + 1);
  return () => latest[kind] === mine;
}

async function busy(text, work) {
  const status = byId("status");
  running += 1;
  status.textContent = text;
  status.classList.add("busy");
  byId("error").hidden = true;
  try {
    status.textContent = (await work()) ?? "";
    return true;
  } catch (error) {
    status.textContent = "";
    fail(error.message);
    return false;
  } finally {
    running -= 1;
    if (!running) status.classList.remove("busy");
  }
}

function fail(text) {
  byId("error").textContent = text;
  byId("error").hidden = false;
  byId("error").scrollIntoView({ block: "nearest" });
}

// ---- 1. the picture ------------------------------------------------------------------------------

async function openGallery() {
  facts = await api.gallery();
  const { name, pictures, persons, since, until } = facts;
  const span = !since ? "" : since === until ? `, ${since}` : `, ${since} to ${until}`;
  byId("gallery").textContent =
    `Gallery “${name}”: ${pictures} pictures, ${persons} detected persons${span}.`;
  byId("top").max = facts.max_top;
  for (const label of document.querySelectorAll(".when")) label.hidden = !since;
  const several = facts.cameras.length > 0;
  byId("cameras").hidden = byId("browse-camera").hidden = !several;
  byId("cameras").replaceChildren(element("legend", {}, "Cameras"));
  for (const camera of facts.cameras) {
    const box = element("input", { type: "checkbox", value: camera, checked: true });
    byId("cameras").append(element("label", { class: "check" }, box, camera));
    byId("browse-cameras").append(element("option", { value: camera }, camera));
  }
}

async function list(fresh) {
  const isLast = begin("list");
  const found = await api.pictures(fresh ? 0 : listed, PAGE, byId("browse-cameras").value);
  if (!isLast()) return;
  if (fresh) {
    byId("thumbs").replaceChildren();
    listed = 0;
  }
  for (const { id, name } of found.pictures) {
    const image = element("img", { src: api.imageUrl(id, 320), alt: "", loading: "lazy" });
    const button = element(
      "button", { type: "button", title: name, onClick: () => choose(() => api.picture(id)) },
      image, element("span", {}, name),
    );
    byId("thumbs").append(element("li", {}, button));
  }
  listed += found.pictures.length;
  byId("more").hidden = listed >= found.total;
  byId("shown").textContent = `${listed} of ${found.total}`;
}

// get(): gives the picture with its persons
async function choose(get, then = null) {
  const isLast = begin("choose");
  const good = await busy("Looking for persons …", async () => {
    const picture = await get();
    if (!isLast()) return "";
    if (!adding) chosen = [];
    byId("mark").hidden = byId("ask").hidden = false;
    picker.show(picture);
    showChosen();
    if (!then) {
      byId("mark-title").focus({ preventScroll: true });
      byId("mark").scrollIntoView({ block: "start" });
    }
    return `${picture.persons.length} detected in ${picture.name}.`;
  });
  return good && isLast();
}

function chooseFile(file) {
  if (!file) return;
  if (!facts) {
    fail("The gallery is not open; load the page again.");
    return;
  }
  if (file.size > facts.upload_bytes) {
    fail(`The picture has ${(file.size / 1e6).toFixed(1)} MB; at most ` +
      `${facts.upload_bytes / 1e6} MB are taken.`);
    return;
  }
  choose(() => api.upload(file));
}

// ---- 2. the person -------------------------------------------------------------------------------

function pick(choice, crop, name) {
  const others = chosen.filter((one) => one.choice.picture !== choice.picture);
  if (others.length === chosen.length) adding = false; // else marked anew, not added
  chosen = [...others, { choice, crop, name }];
  showChosen();
}

function showChosen() {
  byId("chosen").replaceChildren(
    ...chosen.map((one) => {
      const remove = () => {
        chosen = chosen.filter((other) => other !== one);
        if (picker.picture?.id === one.choice.picture) {
          picker.setBox(null);
          picker.markPressed(-1);
        }
        showChosen();
        byId("ask-title").scrollIntoView({ block: "nearest" });
      };
      return element(
        "li", {},
        element("img", { src: one.crop, alt: `The marked person in ${one.name}`, title: one.name }),
        element("button", { type: "button", "aria-label": `Remove the person in ${one.name}`,
          onClick: remove }, "Remove"),
      );
    }),
  );
  byId("nobody").hidden = chosen.length > 0;
  byId("same").hidden = chosen.length < 2;
  byId("another").hidden = !chosen.length || chosen.length >= facts.max_persons;
  byId("search").disabled = !chosen.length;
}

// ---- 3. the search -------------------------------------------------------------------------------

function request() {
  const boxes = [...byId("cameras").querySelectorAll("input")];
  const checked = boxes.filter((box) => box.checked);
  return {
    persons: chosen.map((one) => one.choice),
    top: byId("top").valueAsNumber || 24,
    min_score: byId("score").valueAsNumber || 0,
    cameras: checked.length === boxes.length ? [] : checked.map((box) => box.value),
    since: byId("since").value,
    until: byId("until").value,
    every_person: byId("every").checked,
    include_own: byId("own").checked,
  };
}

// What is wrong with a field of the filters; such a field would have no value, and so no effect.
function wrongField() {
  for (const input of byId("filters").querySelectorAll("input")) {
    const { badInput, rangeUnderflow, rangeOverflow } = input.validity;
    if (badInput || rangeUnderflow || rangeOverflow) return input;
  }
  return null;
}

function search() {
  const wrong = wrongField();
  if (wrong) {
    byId("filters").open = true;
    wrong.focus();
    fail(`“${wrong.labels[0].innerText.trim()}”: ${wrong.validationMessage}`);
    return;
  }
  const boxes = [...byId("cameras").querySelectorAll("input")];
  if (boxes.length && !boxes.some((box) => box.checked)) {
    fail("No camera is chosen in the filters.");
    return;
  }
  const wanted = request();
  const isLast = begin("search");
  busy("Searching …", async () => {
    const found = await api.search(wanted);
    if (!isLast()) return "";
    asked = wanted;
    return results.show(found);
  });
}

async function again(match) {
  adding = false;
  const found = await choose(() => api.picture(match.picture), "search");
  if (!found) return;
  const same = (one) => one.box.join() === match.box.join();
  picker.pick(picker.picture.persons.find(same).person);
  search();
}

function save(name) {
  busy("Saving …", async () => {
    const address = URL.createObjectURL(await api.save(name, asked));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    return `${name} is among your downloads.`;
  });
}

// ---- what the user does --------------------------------------------------------------------------

byId("file").addEventListener("change", (event) => {
  chooseFile(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  chooseFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => chooseFile(event.clipboardData.files[0]));
byId("browse").addEventListener("toggle", () => {
  if (byId("browse").open && !listed) busy("Listing the gallery …", () => list(true));
});
byId("browse-cameras").addEventListener("change", () => busy("Listing …", () => list(true)));
byId("more").addEventListener("click", () => busy("Listing …", () => list(false)));
byId("another").addEventListener("click", () => {
  adding = true;
  byId("status").textContent = "Choose another picture of the same person.";
  byId("choose").scrollIntoView({ block: "start" });
  byId("file").focus({ preventScroll: true });
});
byId("search").addEventListener("click", search);
byId("save-report").addEventListener("click", () => save("report.html"));
byId("save-lines").addEventListener("click", () => save("results.jsonl"));

busy("Opening the gallery …", openGallery);
