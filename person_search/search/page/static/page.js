// SPDX-License-Identifier: Apache-2.0
// Choose an image, mark the person, search. Nothing is stored.

import * as api from "./api.js";
import { byId, element } from "./dom.js";
import { Picker } from "./picker.js";
import { Results } from "./results.js";

const PAGE = 24; // images of the gallery listed at a time

let facts = null;
let opening = null; // promise: whether the gallery is open
let chosen = []; // {choice, crop, name}
let adding = false; // the next image shows the same person
let listed = 0;
let searched = null; // request of the displayed results
const latest = {}; // number of the latest request by kind; only its answer is shown
let running = 0;

const picker = new Picker(pick);
const results = new Results(again);

// ---- status and errors ---------------------------------------------------------------------------

// Returns isLast(): whether this request is still the latest of its kind.
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

// ---- 1. the image --------------------------------------------------------------------------------

// Waits until the gallery is open. After a failure, the next call tries again.
function open() {
  opening ??= busy("Opening the gallery …", openGallery).then((good) => {
    if (!good) {
      opening = null;
      byId("gallery").textContent = "The gallery is not open.";
    }
    return good;
  });
  return opening;
}

async function openGallery() {
  facts = await api.gallery();
  const { name, images, persons, since, until } = facts;
  const span = !since ? "" : since === until ? `, ${since}` : `, ${since} to ${until}`;
  byId("gallery").textContent =
    `Gallery “${name}”: ${images} images, ${persons} detected persons${span}.`;
  byId("model").textContent = `Model: ${facts.model}.`;
  byId("misfit").textContent = facts.warning;
  byId("misfit").hidden = !facts.warning;
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
  const found = await api.images(fresh ? 0 : listed, PAGE, byId("browse-cameras").value);
  if (!isLast()) return;
  if (fresh) {
    byId("thumbs").replaceChildren();
    listed = 0;
  }
  const before = listed;
  for (const { id, name } of found.images) {
    const image = element("img", { src: api.imageUrl(id, 320), alt: "", loading: "lazy" });
    const button = element(
      "button", { type: "button", title: name, onClick: () => choose(() => api.image(id)) },
      image, element("span", {}, name),
    );
    byId("thumbs").append(element("li", {}, button));
  }
  listed += found.images.length;
  const lost = document.activeElement === byId("more") && listed >= found.total;
  byId("more").hidden = listed >= found.total;
  if (lost) byId("thumbs").querySelectorAll("button")[before]?.focus();
  byId("shown").textContent = `${listed} of ${found.total}`;
}

// get() fetches the image with its persons
async function choose(get, then = null) {
  const isLast = begin("choose");
  if (!(await open()) || !isLast()) return false;
  const good = await busy("Looking for persons …", async () => {
    const image = await get();
    if (!isLast()) return "";
    if (!adding) chosen = [];
    byId("mark").hidden = byId("ask").hidden = false;
    picker.show(image);
    showChosen();
    if (!then) {
      byId("mark-title").focus({ preventScroll: true });
      byId("mark").scrollIntoView({ block: "start" });
    }
    return `${image.persons.length} detected in ${image.name}.`;
  });
  return good && isLast();
}

// One image at a time, because a person must be marked in each.
async function chooseFile([file, ...others]) {
  if (!file || !(await choose(() => send(file))) || !others.length) return;
  byId("status").textContent += ` The first of ${1 + others.length} files; add the others one by one.`;
}

function send(file) {
  if (file.size > facts.upload_bytes) {
    throw new Error(`The image has ${(file.size / 1e6).toFixed(1)} MB; the maximum is ` +
      `${facts.upload_bytes / 1e6} MB.`);
  }
  return api.upload(file);
}

// ---- 2. the person -------------------------------------------------------------------------------

function pick(choice, crop, name) {
  const others = chosen.filter((one) => one.choice.image !== choice.image);
  if (others.length === chosen.length) adding = false; // otherwise the mark was replaced
  chosen = [...others, { choice, crop, name }];
  showChosen();
}

function showChosen() {
  byId("chosen").replaceChildren(
    ...chosen.map((one) => element(
      "li", {},
      element("img", { src: one.crop, alt: `The marked person in ${one.name}`, title: one.name }),
      element("button", { type: "button", "aria-label": `Remove the person in ${one.name}`,
        onClick: (event) => remove(one, event.detail > 0) }, "Remove"),
    )),
  );
  byId("unmarked").hidden = chosen.length > 0;
  byId("same").hidden = chosen.length < 2;
  byId("another").hidden = !chosen.length || chosen.length >= facts.max_persons;
  byId("search").disabled = !chosen.length;
}

// Moves the focus to the next button, because its own vanishes; pointed: no key was used.
function remove(one, pointed) {
  const place = chosen.indexOf(one);
  chosen = chosen.filter((other) => other !== one);
  if (picker.image?.id === one.choice.image) picker.clear();
  showChosen();
  byId("status").textContent = `The person in ${one.name} is removed.`;
  const left = byId("chosen").querySelectorAll("button");
  const next = left[Math.min(place, left.length - 1)] ?? byId("file");
  next.focus({ preventScroll: pointed });
  if (pointed) byId("ask-title").scrollIntoView({ block: "nearest" });
}

// ---- 3. the search -------------------------------------------------------------------------------

function request() {
  const boxes = [...byId("cameras").querySelectorAll("input")];
  const checked = boxes.filter((box) => box.checked);
  return {
    persons: chosen.map((one) => one.choice),
    top: byId("top").valueAsNumber || 24,
    min_score: byId("score").valueAsNumber || 0,
    min_similarity: byId("similar").value === "" ? null : byId("similar").valueAsNumber,
    cameras: checked.length === boxes.length ? [] : checked.map((box) => box.value),
    since: byId("since").value,
    until: byId("until").value,
    every_person: byId("every").checked,
    include_own: byId("own").checked,
    every_frame: byId("frames").checked,
  };
}

// Returns the first invalid or incomplete field, which would have no effect, and the reason.
function wrongField() {
  const corner = picker.corners.unfinished();
  if (corner) return [corner, `“Box in pixels”: ${picker.corners.note}`];
  for (const input of byId("filters").querySelectorAll("input")) {
    const { badInput, rangeUnderflow, rangeOverflow } = input.validity;
    if (badInput || rangeUnderflow || rangeOverflow) {
      return [input, `“${input.labels[0].innerText.trim()}”: ${input.validationMessage}`];
    }
  }
  return [];
}

function search() {
  const [wrong, why] = wrongField();
  if (wrong) {
    fail(why);
    wrong.closest("details").open = true;
    wrong.focus(); // last, so that it scrolls into view
    wrong.reportValidity();
    return;
  }
  const boxes = [...byId("cameras").querySelectorAll("input")];
  if (boxes.length && !boxes.some((box) => box.checked)) {
    fail("No camera is selected in the filters.");
    return;
  }
  const wanted = request();
  const isLast = begin("search");
  busy("Searching …", async () => {
    const found = await api.search(wanted);
    if (!isLast()) return "";
    searched = wanted;
    return results.show(found);
  });
}

async function again(match) {
  adding = false;
  const found = await choose(() => api.image(match.image), "search");
  if (!found) return;
  const same = (one) => one.box.join() === match.box.join();
  picker.pick(picker.image.persons.find(same).person);
  search();
}

function save(name) {
  busy("Saving …", async () => {
    const address = URL.createObjectURL(await api.save(name, searched));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    return `${name} was saved to your downloads.`;
  });
}

// ---- events --------------------------------------------------------------------------------------

byId("file").addEventListener("change", (event) => {
  chooseFile(event.target.files);
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
  chooseFile(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => chooseFile(event.clipboardData.files));
byId("browse").addEventListener("toggle", () => {
  if (byId("browse").open && !listed) busy("Listing the gallery …", () => list(true));
});
byId("browse-cameras").addEventListener("change", () => busy("Listing …", () => list(true)));
byId("more").addEventListener("click", () => busy("Listing …", () => list(false)));
byId("another").addEventListener("click", () => {
  adding = true;
  byId("status").textContent = "Choose another image of the same person.";
  byId("choose").scrollIntoView({ block: "start" });
  byId("file").focus({ preventScroll: true });
});
byId("search").addEventListener("click", search);
byId("filters").addEventListener("keydown", (event) => {
  const field = event.target.matches("input:not([type=checkbox])");
  if (event.key === "Enter" && field && chosen.length) search();
});
byId("save-report").addEventListener("click", () => save("report.html"));
byId("save-lines").addEventListener("click", () => save("results.jsonl"));

open();
