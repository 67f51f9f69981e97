// SPDX-License-Identifier: Apache-2.0
// The questions to the server. Every failure becomes an Error whose message people can read.

async function answer(promise) {
  let response;
  try {
    response = await promise;
  } catch {
    throw new Error("The program behind this page does not answer; has it been ended?");
  }
  if (response.ok) return response;
  let told;
  try {
    told = (await response.json()).error;
  } catch {
    told = "";
  }
  if (!told) {
    told = `the program failed (status ${response.status}); its terminal says more.`;
  }
  throw new Error(told.charAt(0).toUpperCase() + told.slice(1));
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

export function pictures(offset, limit, camera) {
  return get(`/api/pictures?${new URLSearchParams({ offset, limit, camera })}`);
}

export function picture(id) {
  return get(`/api/pictures/${encodeURIComponent(id)}`);
}

export async function upload(file) {
  const headers = { "X-File-Name": encodeURIComponent(file.name || "pasted picture") };
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
  return `/api/pictures/${encodeURIComponent(id)}/image?${query}`;
}

export function cropUrl(id, box) {
  const query = new URLSearchParams({ box: box.join(",") });
  return `/api/pictures/${encodeURIComponent(id)}/crop?${query}`;
}
