// Which network and which of its layers.

import { $, fed, make } from "./dom.js";
import { isVisible } from "./events.js";
import { ask } from "./server.js";

const MODEL_SECONDS = 5;
const MANY_LAYERS = 16; // from which on they can be searched
const MOST_LAYERS = 150; // drawn at once

let models = [];
let changed = () => {};
const nodes = new Map(); // by network: its other nodes, once they are asked for

export const model = () => models.find((each) => each.name === $("model").value);
const known = () => [...(model()?.layers ?? []), ...(nodes.get(model()?.name) ?? [])];
export const layer = () => known().find((each) => each.name === $("layers").querySelector(":checked")?.value);

export async function loadModels() {
  const found = await ask("models");
  const idle = found.every((each) => each.available === null);
  if (idle) setTimeout(lookAgain, 1000 * MODEL_SECONDS);
  if (idle && models.length) return; // nothing has changed
  const before = { model: $("model").value, layer: layer()?.name };
  models = found;
  nodes.clear();
  $("model").replaceChildren(...models.map((each) => new Option(
    each.available === false ? `${each.title} (no weights)` : each.title, each.name)));
  const first = models.find((each) => each.name === "vgg16" && each.available)
    ?? models.find((each) => each.available) ?? models.find((each) => each.name === "vgg16") ?? models[0];
  $("model").value = before.model || first.name;
  drawLayers(before.layer);
}

// A worker may have been started meanwhile.
function lookAgain() {
  if (isVisible()) loadModels().catch(() => setTimeout(lookAgain, 1000 * MODEL_SECONDS));
  else document.addEventListener("visibilitychange", lookAgain, { once: true });
}

// Draws the layers and chooses one; `rank`: as if a person had chosen it.
export function drawLayers(preferred, rank = true) {
  const { name, layers } = model();
  sayWeights(model());
  const every = known();
  if (preferred && !nodes.has(name) && !every.some((each) => each.name === preferred)) {
    loadNodes(preferred).catch(() => drawLayers());
    return;
  }
  const usable = every.filter((each) => each.available !== false);
  const standard = usable[Math.min(usable.length - 1, Math.floor(layers.length / 3))];
  const chosen = usable.find((each) => each.name === preferred) ?? standard;
  const text = $("find-layer").value.trim().toLowerCase();
  const found = every.filter((each) => each === chosen || `${each.name} ${each.node} ${each.block}`.toLowerCase().includes(text));
  $("finding").hidden = every.length <= MANY_LAYERS;
  $("every-node").hidden = nodes.has(name);
  $("layers-left").textContent = found.length > MOST_LAYERS ? `and ${found.length - MOST_LAYERS} more: find them by name` : "";
  drawBlocks(found.filter((each, at) => each === chosen || at < MOST_LAYERS), chosen);
  if (rank) changed();
}

function sayWeights({ title, available, reason, preprocessing, weights_refused: refused = [] }) {
  $("weights").classList.toggle("error", available !== true);
  $("weights").textContent = available === null ? "No worker is connected: jobs are accepted, and wait for one."
    : available ? `Weights: ${reason}${fed(preprocessing)}${refused.map((line) => ` · not used: ${line}`).join("")}`
      : `${title} cannot be explained here: ${reason}`;
}

// A row for each block of the network, from the image on.
function drawBlocks(shown, chosen) {
  const blocks = new Map();
  for (const each of shown) blocks.set(each.block, [...(blocks.get(each.block) ?? []), each]);
  $("layers").replaceChildren($("layers").firstElementChild, ...[...blocks].map(([block, own]) => {
    const sizes = new Set(own.map(size));
    const same = sizes.size === 1 && own.every((each) => each.available !== false);
    return make("div", { className: "block", role: "group", "aria-label": block },
      make("p", {}, make("span", {}, block), same ? make("small", {}, [...sizes][0]) : ""),
      make("div", {}, ...own.map((each) => choice(each, each === chosen, same))));
  }));
}

const size = ({ kernels, height, width, signed }) => `${kernels} kernels, ${height}\u00a0×\u00a0${width}${signed ? ", ±" : ""}`;

function choice(each, checked, same) {
  const off = each.available === false;
  const why = model().available ? "not in these weights" : "no weights";
  const title = off ? `${each.name}: ${why}` : `${each.name}: ${size(each)}; each position sees ${each.receptive_field} × ${each.receptive_field} pixels`;
  return make("label", { className: "layer", title },
    make("input", { type: "radio", name: "layer", value: each.name, checked, disabled: off, onchange: changed }),
    make("span", {}, each.name), off ? make("small", {}, why) : same ? "" : make("small", {}, size(each)));
}

// Every node of the network that has maps, beside the layers that are shown first.
async function loadNodes(preferred = layer()?.name) {
  const before = layer()?.name;
  const { name } = model();
  nodes.set(name, (await ask(`models/${encodeURIComponent(name)}`)).nodes);
  if (model().name === name) drawLayers(preferred, preferred !== before);
}

export function start(guard, onChange) {
  changed = () => onChange();
  $("model").addEventListener("change", () => {
    $("find-layer").value = "";
    drawLayers();
  });
  $("find-layer").addEventListener("input", () => drawLayers(layer()?.name, false));
  $("find-layer").addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.preventDefault(); // it would submit the form
  });
  $("every-node").addEventListener("click", guard(() => loadNodes()));
}
