// The explanations of a job: a tile for each image and kernel, made once, and the explanation that is looked at.

import { nameOf } from "./choose.js";
import { $, button, make } from "./dom.js";
import { detail, OPTIMIZED, summary, variants } from "./result.js";
import { ended } from "./server.js";

export const results = new Map(); // those that are there, by index

const FEW = 48; // tiles, beyond which they scroll above what is looked at

let job = null;
let all = false; // there will be no more results
let tiles = [];
let kernels = 0; // of each image
let each = 1; // explanations of a tile: its methods, α and β
let names = []; // of the images
let place = 0; // the tile that is looked at
let index = null; // the result of that tile that is looked at

export function show(found) {
  job = found;
  all = false;
  place = 0;
  index = null;
  results.clear();
  for (const result of job.results ?? []) results.set(result.index, result);
  const { request } = job;
  kernels = Array.isArray(request.kernels) ? request.kernels.length : Number(request.kernels.slice("top:".length));
  each = request.methods.reduce((sum, method) => sum + (OPTIMIZED.includes(method) ? request.alpha.length * request.beta.length : 1), 0);
  names = imageNames();
  tiles = Array.from({ length: request.images.length * kernels }, (_, at) => {
    const tile = button("", () => look(at), { className: "tile" });
    tile.append(make("span", { className: "nothing" }), make("span"), make("span"));
    return tile;
  });
  tiles.forEach((_, at) => draw(at));
  $("overview").classList.toggle("many", tiles.length > FEW);
  $("overview").replaceChildren(...tiles);
  $("detail").replaceChildren();
}

function imageNames() {
  const given = job.request.images.map((_, at) => nameOf(job.request, at));
  return given.map((name, at) => {
    if (!name) return given.length > 1 ? `image ${at}` : "the image";
    return given.filter((other) => other === name).length > 1 ? `${name} (image ${at})` : name;
  });
}

// A result that has just come, or comes again.
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

// What X̂ of an item looks like after so many evaluations, if anybody has drawn it.
export function forms({ index: at, iteration, preview }) {
  const tile = tiles[Math.floor(at / each)];
  if (!tile || at % each || results.has(at)) return;
  tile.lastElementChild.textContent = `evaluation ${iteration}`;
  if (!preview) return;
  const next = make("img", { alt: "", src: `jobs/${job.id}/previews/${at}?evaluation=${preview}` });
  next.decode().then(() => { // takes the place of the last once it is there
    if (tile.isConnected && tile.classList.contains("forming")) tile.firstElementChild.replaceWith(next);
  }).catch(() => {}); // it was taken away meanwhile: the result is there
}

// The job has ended. Until all of its results are there, tiles without one may still get theirs.
export function end(found, complete) {
  const ran = !ended(job.status);
  job = found;
  all = complete;
  for (const result of job.results ?? []) results.set(result.index, result);
  tiles.forEach((_, at) => draw(at));
  if (index === null) settle();
  else if (ran) look(place, index);
}

// Something is looked at, where there is anything.
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
  const tile = tiles[at];
  const [picture, title, state] = tile.children;
  const { images, kernels: asked } = job.request;
  const found = members(at);
  const best = found.find((result) => result.status === "succeeded") ?? found[0];
  const over = ended(job.status);
  const forming = !over && !results.has(at * each); // the first method is what the tile shows
  const kernel = best?.kernel ?? (Array.isArray(asked) ? asked[at % kernels] : null);
  const several = images.length > 1 ? `, ${names[Math.floor(at / kernels)]}` : "";
  title.textContent = `${kernel === null ? `no. ${at + 1} by activation` : `kernel ${kernel}`}${several}`;
  tile.classList.toggle("forming", forming);
  tile.ariaPressed = String(at === place && index !== null);
  tile.disabled = !best;
  tile.hidden = over && all && !best && job.status !== "cancelled"; // "top:N", and fewer are active
  if (forming) state.textContent = found.length ? `${found.length} of ${each} explanations` : "waits";
  else if (!best) state.textContent = all ? job.status : "…";
  else state.textContent = found.length > 1 ? `${found.length} explanations` : summary(best);
  const src = forming ? null : best?.artifacts["optimized.png"];
  if (src && picture.getAttribute("src") !== src) picture.replaceWith(make("img", { alt: "", loading: "lazy", src }));
}

function look(at, which = null) {
  const found = members(at);
  const result = found.find((other) => other.index === which) ?? found[0];
  tiles[place].ariaPressed = "false";
  tiles[at].ariaPressed = "true";
  place = at;
  index = result.index;
  const parts = detail(job, result, found, names[Math.floor(at / kernels)], (other) => look(at, other.index));
  $("detail").replaceChildren(...parts.filter(Boolean));
}
