// Which kernels: those of the chosen layer, ranked by how active they are on the current image.

import { $, make, numbersIn, percent, say as write } from "./dom.js";
import { ended, isVisible } from "./events.js";
import { Grid } from "./grid.js";
import { currentImage, rankingOf } from "./images.js";
import { layer, model } from "./layers.js";
import { ask, Refused } from "./server.js";

const FIRST_KERNELS = 24;
const PRESELECTED = 2;
const WAIT_SECONDS = 5; // that one request waits for a ranking: it occupies a connection meanwhile

let ranking = null; // of the current image and layer
let wanted = null; // { model, layer, kernels } to select once they are ranked: numbers, or "top:N"
let grid = null;
let changed = () => {};
const selected = new Set(); // ranks
const rankings = new Map(); // by image, network and layer: promises, so that the same is requested once

function say(text, isError = false) {
  write($("kernels-hint"), text);
  $("kernels-hint").classList.toggle("error", isError);
}

export async function rank() {
  const asked = { image: currentImage(), model: model()?.name, layer: layer()?.name };
  const superseded = () => asked.image !== currentImage() || asked.model !== model()?.name || asked.layer !== layer()?.name;
  const key = asked.image && `${asked.image.url} ${asked.model} ${asked.layer}`;
  $("kernels").hidden = true;
  $("more-kernels").hidden = true;
  ranking = null;
  if (!wantedHere()) wanted = null;
  changed();
  if (!asked.image || !asked.layer) {
    say("Choose an image: the layer's kernels are then ranked by how active they are on it.");
    return;
  }
  say(`Ranking the kernels of ${asked.layer} …`);
  try {
    if (!rankings.has(key)) rankings.set(key, ranked(asked, superseded));
    const found = await rankings.get(key);
    if (!found) rankings.delete(key);
    else if (!superseded()) drawKernels(found);
  } catch (error) {
    rankings.delete(key);
    if (!superseded()) say(`${error.message}${error instanceof Refused ? "" : " Kernels can still be given by number."}`, true);
  }
}

async function ranked({ image, ...where }, superseded) {
  let job = await rankingOf(image, where);
  for (let first = true; !ended(job.status); first = false) {
    if (superseded()) return null;
    if (!first) say("Waiting for a worker to rank the kernels … Meanwhile they can be given by number.");
    if (!isVisible()) await new Promise((shown) => document.addEventListener("visibilitychange", shown, { once: true }));
    job = await ask(`jobs/${job.id}`, { headers: { Prefer: `wait=${WAIT_SECONDS}` } });
  }
  if (job.status !== "succeeded") throw new Error(job.error?.detail ?? `The ranking was ${job.status}.`);
  return job.results[0];
}

function drawKernels(found) {
  ranking = found;
  const { length } = ranking.ranking;
  const active = ranking.ranking.filter((one) => one.mean > 0).length;
  say(active ? `The most active first; ${active} of ${length} respond to this image.` : "Every kernel of this layer is silent on this image: choose another layer or image.", !active);
  select();
  const first = [...selected].some((at) => at >= FIRST_KERNELS) ? length : Math.min(FIRST_KERNELS, length);
  const order = Array.from({ length }, (_, at) => at);
  $("kernels").hidden = !active;
  grid.clear();
  grid.show(order.slice(0, first));
  $("more-kernels").hidden = !active || length <= first;
  $("more-kernels").textContent = `Show all ${length} kernels`;
  $("more-kernels").onclick = () => {
    grid.show(order);
    $("more-kernels").hidden = true;
    grid.focus(first);
  };
  changed();
}

// The kernels that are wanted of the chosen layer.
const wantedHere = () => (wanted && wanted.model === model()?.name && wanted.layer === layer()?.name ? wanted.kernels : null);

// Ticks the kernels that are wanted; those that are silent on this image cannot be ticked, and are given by number.
function select() {
  selected.clear();
  const here = wantedHere();
  const top = typeof here === "string" ? Number(here.slice("top:".length)) : PRESELECTED;
  ranking.ranking.forEach(({ kernel, mean }, at) => {
    if (mean > 0 && (Array.isArray(here) ? here.includes(kernel) : at < top)) selected.add(at);
  });
  if (Array.isArray(here)) {
    const ticked = [...selected].map((at) => ranking.ranking[at].kernel);
    const silent = here.filter((kernel) => !ticked.includes(kernel));
    $("numbers").value = [$("numbers").value.trim(), ...silent].filter((part) => part !== "").join(", ");
  }
  wanted = null;
}

function kernelTile(at) {
  const one = ranking.ranking[at];
  const box = make("input", { type: "checkbox", value: one.kernel, checked: selected.has(at), disabled: one.mean <= 0, onchange: () => {
    if (box.checked) selected.add(at);
    else selected.delete(at);
    changed();
  } });
  return make("label", { className: "kernel", title: `kernel ${one.kernel}: active at ${percent(one.active)} of the positions, highest ${one.max.toPrecision(3)}` },
    box, thumbnail(at),
    make("span", { className: "name" }, `kernel ${one.kernel}`, make("small", {}, one.mean > 0 ? `mean ${one.mean.toPrecision(2)}` : "silent")));
}

// The kernel's map, cut from the sheet of all maps, over the image in grey.
function thumbnail(at) {
  const { columns } = ranking.thumbnails;
  const map = make("span", { className: "map" }, make("i"));
  map.style.backgroundImage = `url("${currentImage().url}")`;
  const sheet = map.firstElementChild.style;
  const rows = Math.ceil(ranking.ranking.length / columns);
  const part = (place, count) => (count > 1 ? `${(100 * place) / (count - 1)}%` : "0%");
  sheet.backgroundImage = `url("${ranking.artifacts["thumbnails.png"]}")`;
  sheet.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  sheet.backgroundPosition = `${part(at % columns, columns)} ${part(Math.floor(at / columns), rows)}`;
  return map;
}

// The kernels as a request names them; throws a sentence where there are none.
export function chosen() {
  const ticked = ranking ? [...selected].sort((one, other) => one - other).map((at) => ranking.ranking[at].kernel) : [];
  const kernels = [...new Set([...ticked, ...numbersIn("numbers", "Kernels by number", { whole: true })])];
  if (kernels.length) return kernels;
  if (ranking) throw new Error("Choose at least one kernel.");
  const here = wantedHere();
  return here?.length ? here : `top:${PRESELECTED}`;
}

// Selects the kernels of a request in the next ranking of its layer.
export function want({ model, layer, kernels }) {
  wanted = { model, layer, kernels };
  $("numbers").value = "";
}

export function start(onChange) {
  changed = onChange;
  grid = new Grid($("kernel-grid"), kernelTile, 5.4);
}
