// SPDX-License-Identifier: Apache-2.0
// Requests to the server. Every failure becomes an Error with a readable message.

async function answer(promise) {
  let response;
  try {
    response = await promise;
  } catch {
    throw new Error("The server does not answer; has it been stopped?");
  }
  if (response.ok) return response;
  let reason = `the server failed (status ${response.status}); its terminal shows the error.`;
  try {
    reason = (await response.json()).error || reason;
  } catch {
    // not an answer of ours
  }
  throw new Error(reason.charAt(0).toUpperCase() + reason.slice(1));
}

async function get(path) {
  return (await answer(fetch(path))).json();
}

function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

export function gallery() {
  return get("/api/gallery");
}

export function images(offset, limit, camera) {
  return get(`/api/images?${new URLSearchParams({ offset, limit, camera })}`);
}

export function image(id) {
  return get(`/api/images/${encodeURIComponent(id)}`);
}

export async function upload(file) {
  const headers = { "X-File-Name": encodeURIComponent(file.name || "pasted image") };
  return (await answer(fetch("/api/uploads", { method: "POST", headers, body: file }))).json();
}

export async function search(request) {
  return (await post("/api/search", request)).json();
}

export async function save(name, request) {
  return (await post(`/api/search/${name}`, request)).blob();
}

export function imageUrl(id, side, box) {
  const query = new URLSearchParams(box ? { side, box: box.join(",") } : { side });
  return `/api/images/${encodeURIComponent(id)}/image?${query}`;
}

export function cropUrl(id, box) {
  const query = new URLSearchParams({ box: box.join(",") });
  return `/api/images/${encodeURIComponent(id)}/crop?${query}`;
}

export function label() {
  return get("/api/label");
}

export async function labelEdit(edit) {
  return (await post("/api/label", edit)).json();
}

export function labelUrl(edition, person, scene = false) {
  return `/api/label/${edition}/${person}${scene ? "?scene=1" : ""}`;
}
