// The explanations of a job: a tile for each image and kernel, and one explanation in detail.

import { $, button, make } from "./dom.js";
import { ended } from "./events.js";
import { Grid } from "./grid.js";
import { nameOf } from "./images.js";
import { counted } from "./request.js";
import { detail, summary, variants } from "./result.js";

export const results = new Map(); // those that have been read, by index

let job = null;
let all = false; // there will be no more results
let count = 0; // of tiles
let kernels = 0; // of each image
let each = 1; // explanations of a tile: its methods, α and β
let names = []; // of the images
let place = 0; // the tile that is shown in detail
let index = null; // the result of that tile that is shown
const grid = new Grid($("overview"), newTile, 8);

export function show(found) {
  job = found;
  all = false;
  place = 0;
  index = null;
  results.clear();
  for (const result of job.results ?? []) results.set(result.index, result);
  const { request } = job;
  ({ kernels, each } = counted(request, 1));
  count = request.images.length * kernels;
  names = imageNames();
  grid.clear();
  arrange();
  $("detail").replaceChildren();
}

function newTile(at) {
  const tile = button("", () => look(at), { className: "tile" });
  tile.append(make("span", { className: "nothing" }), make("span"), make("span"));
  fill(tile, at);
  return tile;
}

// "top:N" of a layer of which fewer kernels are active: the rest has no tile.
function arrange() {
  const known = (at) => !ended(job.status) || !all || job.status === "cancelled" || members(at).length;
  grid.show(Array.from({ length: count }, (_, at) => at).filter(known));
}

function imageNames() {
  const given = job.request.images.map((_, at) => nameOf(job.request, at));
  return given.map((name, at) => {
    if (!name) return given.length > 1 ? `image ${at}` : "the image";
    return given.filter((other) => other === name).length > 1 ? `${name} (image ${at})` : name;
  });
}

// A new result, or one that was read before.
export function take(result) {
  results.set(result.index, result);
  const at = Math.floor(result.index / each);
  draw(at);
  if (index === null) {
    if (!ended(job.status) && result.index % each === 0) look(at, result.index);
  } else if (at === place) {
    $("detail").querySelector(".methods").replaceWith(variants(results.get(index), members(at), (other) => look(at, other.index)));
  }
}

// How far the optimisation of an item is, and X̂ as it is now, where the worker has drawn it.
export function forms({ index: at, iteration, preview }) {
  const tile = grid.get(Math.floor(at / each));
  if (!tile || at % each || results.has(at)) return;
  tile.lastElementChild.textContent = `evaluation ${iteration}`;
  if (!preview) return;
  const next = make("img", { alt: "", src: `jobs/${job.id}/previews/${at}?evaluation=${preview}` });
  next.decode().then(() => { // replaces the last one once it is loaded
    if (tile.isConnected && tile.classList.contains("forming")) tile.firstElementChild.replaceWith(next);
  }).catch(() => {}); // it was deleted meanwhile: there is a result
}

// The job has ended. Until all of its results have been read, tiles may still get theirs.
export function end(found, complete) {
  const ran = !ended(job.status);
  job = found;
  all = complete;
  for (const result of job.results ?? []) results.set(result.index, result);
  arrange();
  for (let at = 0; at < count; at += 1) draw(at);
  if (index === null) settle();
  else if (ran) look(place, index);
}

// Shows an explanation in detail, where there is one.
export function settle() {
  if (index !== null || !results.size) return;
  const found = [...results.values()];
  const first = found.find((result) => result.status === "succeeded") ?? found[0];
  look(Math.floor(first.index / each), first.index);
}

function members(at) {
  return Array.from({ length: each }, (_, number) => results.get(at * each + number)).filter(Boolean);
}

function draw(at) {
  if (grid.get(at)) fill(grid.get(at), at);
}

function fill(tile, at) {
  const [picture, title, state] = tile.children;
  const { images, kernels: asked } = job.request;
  const found = members(at);
  const best = found.find((result) => result.status === "succeeded") ?? found[0];
  const over = ended(job.status);
  const forming = !over && !results.has(at * each); // the first method is what the tile shows
  const kernel = best?.kernel ?? (Array.isArray(asked) ? asked[at % kernels] : null);
  const several = images.length > 1 ? `, ${names[Math.floor(at / kernels)]}` : "";
  title.textContent = `${kernel === null ? `no. ${at + 1} by activation` : `kernel ${kernel}`}${several}`;
  tile.title = title.textContent;
  tile.classList.toggle("forming", forming);
  tile.ariaPressed = String(at === place && index !== null);
  tile.disabled = !best;
  if (forming) state.textContent = found.length ? `${found.length} of ${each} explanations` : "waiting";
  else if (!best) state.textContent = all ? job.status : "…";
  else state.textContent = found.length > 1 ? `${found.length} explanations` : summary(best);
  const src = forming ? null : best?.artifacts["optimized.png"];
  if (src && picture.getAttribute("src") !== src) picture.replaceWith(make("img", { alt: "", loading: "lazy", src }));
}

function look(at, which = null) {
  const found = members(at);
  const result = found.find((other) => other.index === which) ?? found[0];
  const before = place;
  place = at;
  index = result.index;
  for (const other of [before, at]) grid.get(other)?.setAttribute("aria-pressed", String(other === at));
  const parts = detail(job, result, found, names[Math.floor(at / kernels)], (other) => look(at, other.index));
  $("detail").replaceChildren(...parts.filter(Boolean));
}
