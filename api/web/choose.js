// What is to be explained: images, network, layer, kernels.

import { $, button, fed, make, numbersIn, percent } from "./dom.js";
import { ask, ended, Refused, submit } from "./server.js";

const MOST_IMAGES = 16;
const MOST_LETTERS = 128; // of an image's name
const FIRST_KERNELS = 24;
const PRESELECTED = 2;
const SAMPLES = [
  { name: "colours.png", says: "all colours" },
  { name: "shapes.png", says: "drawn shapes" },
  { name: "astronaut.jpg", says: "a photograph" },
];
const TYPES = ["image/png", "image/jpeg", "image/webp"];
const MODEL_SECONDS = 5;

let models = [];
let images = []; // { name, url, blob, sha256 }: blob where we have the bytes, sha256 once the server has them
let current = null; // the image that the kernels are ranked on
let ranking = null;
let job = null; // that ranks
let wanted = []; // kernels to select when they are ranked
const MANY_LAYERS = 16; // from which on they can be searched
const MOST_LAYERS = 150; // drawn at once
const nodes = new Map(); // by network: its other nodes, once somebody wants them
const rankings = new Map(); // by image, network and layer: promises, so that the same is asked once

export function addFiles(files) {
  const usable = [...files].filter((file) => TYPES.includes(file.type));
  const other = [...files].find((file) => !TYPES.includes(file.type));
  add(usable.map((file) => ({ name: file.name || "pasted image", url: URL.createObjectURL(file), blob: file })));
  if (other) throw new Error(`“${other.name}” is not an image that can be used: send PNG, JPEG or WebP.`);
}

function add(more) {
  const room = MOST_IMAGES - images.length;
  images.push(...more.slice(0, room));
  if (more.length) current = images[images.length - Math.min(more.length, room)] ?? current;
  drawImages();
  rank();
  if (more.length > room) throw new Error(`At most ${MOST_IMAGES} images are explained together; ${more.length - room} were left out.`);
}

function drawImages() {
  $("images").replaceChildren(...images.map((image) => make("li", {},
    button("", () => { current = image; drawImages(); rank(); }, {
      className: "thumb", ariaPressed: String(image === current), title: `rank kernels on ${image.name}`, ariaLabel: image.name,
    }),
    button("×", () => remove(image), { className: "remove", ariaLabel: `remove ${image.name}` }))));
  [...$("images").querySelectorAll(".thumb")].forEach((each, at) => each.append(make("img", { src: images[at].url, alt: "" })));
}

function remove(image) {
  images = images.filter((each) => each !== image);
  if (current === image) current = images[0] ?? null;
  drawImages();
  rank();
  ($("images").querySelector(".thumb") ?? $("files")).focus();
}

function drawSamples(guard) {
  $("samples").replaceChildren(...SAMPLES.map(({ name, says }) => {
    const chosen = button("", guard(async () => {
      const blob = await (await fetch(`web/${name}`)).blob();
      images = images.filter((image) => image.name !== name);
      add([{ name, url: `web/${name}`, blob }]);
    }), { className: "thumb", title: says, ariaLabel: `sample: ${says}` });
    chosen.append(make("img", { src: `web/${name}`, alt: "", width: 64, height: 64, loading: "lazy" }));
    return chosen;
  }));
}

// Networks and layers

const model = () => models.find((each) => each.name === $("model").value);
const known = () => [...(model()?.layers ?? []), ...(nodes.get(model()?.name) ?? [])];
const layer = () => known().find((each) => each.name === $("layers").querySelector(":checked")?.value);

export async function loadModels() {
  const found = await ask("models");
  const idle = found.every((each) => each.available === null);
  if (idle) setTimeout(() => loadModels().catch(() => {}), 1000 * MODEL_SECONDS);
  if (idle && models.length) return; // as before
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

function drawLayers(preferred, again = true) {
  const { name, title, layers, available, reason, preprocessing, weights_refused: refused = [] } = model();
  $("weights").classList.toggle("error", available !== true);
  $("weights").textContent = available === null ? "No worker is connected: jobs are taken, and wait until one is."
    : available ? `${title}, weights: ${reason}${fed(preprocessing)}${refused.map((line) => ` · not used: ${line}`).join("")}`
      : `${title} cannot be explained here: ${reason}`;
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
  const drawn = new Set([chosen, ...found.slice(0, MOST_LAYERS)]);
  const blocks = new Map();
  for (const each of found) if (drawn.has(each)) blocks.set(each.block, [...(blocks.get(each.block) ?? []), each]);
  $("layers").replaceChildren($("layers").firstElementChild, ...[...blocks].map(([block, own]) => make("div", { className: "block", role: "group", "aria-label": block },
    make("span", { className: "faint" }, block), ...own.map((each) => {
      const off = each.available === false;
      const why = available ? "not in these weights" : "no weights";
      return make("label", { className: "layer", title: off ? `${each.name}: ${why}` : `${each.name}: each position sees ${each.receptive_field} × ${each.receptive_field} pixels` },
        make("input", { type: "radio", name: "layer", value: each.name, checked: each === chosen, disabled: off, onchange: rank }),
        make("span", {}, each.name),
        make("small", {}, off ? why : `${each.kernels} kernels, ${each.height} × ${each.width}${each.signed ? ", ±" : ""}`));
    }))));
  if (again) rank();
}

// Every node of the network that has maps, beside those that one looks at first.
async function loadNodes(preferred = layer()?.name) {
  const before = layer()?.name;
  const { name } = model();
  nodes.set(name, (await ask(`models/${encodeURIComponent(name)}`)).nodes);
  if (model().name === name) drawLayers(preferred, preferred !== before);
}

// Kernels

function say(text, isError = false) {
  $("kernels-hint").textContent = text;
  $("kernels-hint").classList.toggle("error", isError);
}

async function rank() {
  const asked = { image: current, model: $("model").value, layer: layer()?.name };
  const superseded = () => asked.image !== current || asked.model !== $("model").value || asked.layer !== layer()?.name;
  const key = asked.image && `${asked.image.url} ${asked.model} ${asked.layer}`;
  $("kernels").hidden = true;
  $("more-kernels").hidden = true;
  ranking = null;
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
    if (!superseded()) say(`${error.message} ${error instanceof Refused ? "" : "Kernels can be given by number all the same."}`, true);
  }
}

async function ranked(asked, superseded) {
  const wait = { Prefer: "wait=20" };
  job = await sending([asked.image], (sources) => submit("activations", { model: asked.model, layer: asked.layer, images: sources }, wait));
  while (!ended(job.status)) {
    if (superseded()) return null;
    say("Waiting for a worker to rank the kernels … They can be given by number meanwhile.");
    job = await ask(`jobs/${job.id}`, { headers: wait });
  }
  if (job.status !== "succeeded") throw new Error(job.error?.detail ?? `The ranking was ${job.status}.`);
  return job.results[0];
}

function drawKernels(found) {
  ranking = found;
  const active = ranking.ranking.filter((one) => one.mean > 0).length;
  say(active ? `The most active first; ${active} of ${ranking.ranking.length} respond to this image.` : "Every kernel of this layer is silent on this image: choose another layer or image.", !active);
  const usual = ranking.ranking.slice(0, PRESELECTED).map((one) => one.kernel);
  const selected = new Set(wanted.length ? wanted : usual);
  wanted = [];
  const tiles = ranking.ranking.map((one, rank) => kernelTile(one, rank, selected.has(one.kernel)));
  const first = Math.max(FIRST_KERNELS, tiles.findLastIndex((tile) => tile.firstElementChild.checked) + 1);
  $("kernels").replaceChildren($("kernels").firstElementChild, ...tiles.slice(0, first));
  $("kernels").hidden = !active;
  $("more-kernels").hidden = !active || tiles.length <= first;
  $("more-kernels").onclick = () => {
    const box = tiles[first].firstElementChild;
    $("kernels").append(...tiles.slice(first));
    $("more-kernels").hidden = true;
    box.focus();
  };
}

function kernelTile(one, rank, checked) {
  const { columns } = ranking.thumbnails;
  const map = make("span", { className: "map" }, make("i"));
  map.style.backgroundImage = `url("${current.url}")`;
  const sheet = map.firstElementChild.style;
  const rows = Math.ceil(ranking.ranking.length / columns);
  const at = (place, count) => (count > 1 ? `${(100 * place) / (count - 1)}%` : "0%");
  sheet.backgroundImage = `url("${ranking.artifacts["thumbnails.png"]}")`;
  sheet.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  sheet.backgroundPosition = `${at(rank % columns, columns)} ${at(Math.floor(rank / columns), rows)}`;
  return make("label", { className: "kernel", title: `kernel ${one.kernel}: active at ${percent(one.active)} of the positions, highest ${one.max.toPrecision(3)}` },
    make("input", { type: "checkbox", value: one.kernel, checked, disabled: one.mean <= 0 }),
    map,
    make("span", { className: "name" }, `kernel ${one.kernel}`, make("small", {}, one.mean > 0 ? `mean ${one.mean.toPrecision(2)}` : "silent")));
}

// What is asked

export function choice() {
  if (!images.length) {
    $("files").focus();
    throw new Error("Choose an image first, or one of the samples.");
  }
  if (!layer()) throw new Error("Choose a layer that the weights cover.");
  const ticked = [...$("kernels").querySelectorAll(":checked")].map((box) => Number(box.value));
  const kernels = [...new Set([...($("kernels").hidden ? [] : ticked), ...numbersIn("numbers", "Kernels by number", { whole: true })])];
  if (ranking && !kernels.length) throw new Error("Choose at least one kernel.");
  return { model: model().name, layer: layer().name, kernels: kernels.length ? kernels : `top:${PRESELECTED}` };
}

// Sends the images: those that the server has by their SHA-256, unless it has forgotten them.
export const explained = (body) => sending(images, (sources) => submit("explain", { ...body, images: sources }));

async function sending(some, send) {
  let answer;
  try {
    answer = await send(await Promise.all(some.map(source)));
  } catch (error) {
    const forgotten = some.filter((image) => image.sha256 && image.blob);
    if (!error.problem?.type?.endsWith("/problems/unknown-image") || !forgotten.length) throw error;
    for (const image of forgotten) delete image.sha256;
    answer = await send(await Promise.all(some.map(source)));
  }
  some.forEach((image, at) => { image.sha256 = answer.request.images[at]; });
  return answer;
}

async function source(image) {
  const name = [...image.name.replace(/[\u0000-\u001f\u007f-\u009f]/g, "")].slice(0, MOST_LETTERS).join("") || null;
  if (image.sha256) return { sha256: image.sha256, name };
  const url = await new Promise((read, failed) => {
    const reader = new FileReader();
    reader.onload = () => read(reader.result);
    reader.onerror = () => failed(new Error(`“${image.name}” cannot be read any more; choose it again.`));
    reader.readAsDataURL(image.blob);
  });
  return { data: url.slice(url.indexOf(",") + 1), name };
}

// The name of an image of a job: as the job has it, or as it is called here, where it is known.
export const nameOf = ({ names, images: digests }, at) => names[at] ?? images.find(({ sha256 }) => sha256 === digests[at])?.name;

// Takes over a job's request; `url` finds a picture of each of its images.
export function fill(request, url) {
  images = request.images.map((sha256, at) => ({
    ...(images.find((image) => image.sha256 === sha256) ?? { url: url(sha256), sha256 }),
    name: nameOf(request, at) ?? `image ${at}`,
  }));
  current = images[0];
  drawImages();
  wanted = Array.isArray(request.kernels) ? request.kernels : [];
  $("numbers").value = "";
  $("model").value = request.model;
  drawLayers(request.layer);
}

// `guard` makes of a function one whose errors are told to the person.
export function start(guard) {
  drawSamples(guard);
  $("files").addEventListener("change", guard(() => {
    const files = [...$("files").files];
    $("files").value = "";
    addFiles(files);
  }));
  $("model").addEventListener("change", () => {
    $("find-layer").value = "";
    drawLayers();
  });
  $("find-layer").addEventListener("input", () => drawLayers(layer()?.name, false));
  $("find-layer").addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.preventDefault(); // it would explain
  });
  $("every-node").addEventListener("click", guard(() => loadNodes()));
}
