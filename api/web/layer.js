// A layer's page: all of its kernels as tiles, which can be sorted and filtered.

import { $, link, make } from "./dom.js";
import { address, count, guard, inAddress, number, open, share, surveyed, titleOf, unfinished } from "./pages.js";

const AT_ONCE = 64; // tiles that are made in one go: a few milliseconds
const AHEAD = "300px"; // below the window, where pictures are loaded

const score = (name) => (kernel) => (kernel[name] === null ? "not measured" : `${name} ${kernel[name].toFixed(2)}`);
// Orders: the highest value first, kernels without a value last.
const ORDERS = {
  kernel: { says: "number", shows: (kernel) => `mean ${number(kernel.mean)}` },
  mean: { says: "activity (mean)", shows: (kernel) => `mean ${number(kernel.mean)}` },
  max: { says: "highest activation", shows: (kernel) => `highest ${number(kernel.max)}` },
  active_images: { says: "share of images", shows: (kernel) => `${share(kernel.active_images)} of images` },
  consistency: { says: "consistency", shows: score("consistency") },
  colour: { says: "colour", shows: score("colour") },
};

const [network, layerName] = inAddress(2);

let page = null;
let tiles = new Map(); // by kernel
let drawing = 0; // the last order to draw

// Pictures are loaded when they come near the window.
const seeing = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seeing.unobserve(target);
    target.querySelector("img")?.setAttribute("src", target.dataset.src);
  }
}, { rootMargin: AHEAD });

function show(found) {
  page = found;
  surveyed(page);
  unfinished(page.survey, show);
  const { layer, survey } = page;
  $("where").textContent = `${count(layer.kernels)} kernels, whose maps have ${layer.height} × ${layer.width} positions; the receptive field is ${layer.receptive_field} × ${layer.receptive_field} pixels of the network's input.`;
  $("csv").hidden = !survey.links.csv;
  $("csv").href = survey.links.csv ?? "";
  $("content").hidden = survey.status !== "succeeded" && !page.kernels.length;
  seeing.disconnect();
  tiles = new Map();
  draw();
}

function heading(title) {
  const name = page?.layer.name ?? layerName;
  $("title").textContent = `Kernels of ${name}, ${title}`;
  document.title = `Kernels of ${name}, ${title} – Kernelscope`;
  $("trail").replaceChildren(link("Kernelscope", "."), make("span", { ariaHidden: "true" }, "›"), make("span", { ariaCurrent: "page" }, `${name}, ${title}`));
}

function chosen() {
  const order = $("sort").value;
  const text = $("find").value.trim();
  const found = page.kernels.filter((kernel) => String(kernel.kernel).startsWith(text) && (!$("active").checked || kernel.active_images > 0));
  if (order === "kernel") return found;
  const worth = (kernel) => kernel[order] ?? -Infinity;
  return found.toSorted((one, other) => worth(other) - worth(one) || one.kernel - other.kernel);
}

// Some tiles at a time, so that the page stays responsive.
function draw() {
  const found = chosen();
  const silent = page.kernels.filter((kernel) => kernel.active_images === 0).length;
  const all = `${count(page.kernels.length)} kernels${silent ? `, ${count(silent)} of them silent` : ""}.`;
  $("shown").textContent = found.length === page.kernels.length ? all : `${count(found.length)} of ${count(page.kernels.length)} kernels shown.`;
  drawing += 1;
  const mine = drawing;
  const list = $("kernels-of-layer");
  list.replaceChildren();
  const next = (start) => {
    if (mine !== drawing) return;
    list.append(...found.slice(start, start + AT_ONCE).map(tile));
    if (start + AT_ONCE < found.length) setTimeout(next, 0, start + AT_ONCE);
  };
  next(0);
}

function tile(kernel) {
  const at = tiles.get(kernel.kernel) ?? made(kernel);
  at.querySelector(".value").textContent = kernel.active_images === 0 ? "silent" : ORDERS[$("sort").value].shows(kernel);
  return at;
}

function made(kernel) {
  const src = kernel.picture ?? kernel.crop;
  const to = link("", address(network, layerName, kernel.kernel), { className: "tile" });
  to.append(src ? make("img", { alt: "" }) : make("span", { className: "nothing" }), make("span", {}, `kernel ${kernel.kernel}`), make("span", { className: "value" }));
  const item = make("li", {}, to);
  if (src) {
    item.dataset.src = src;
    item.querySelector("img").onerror = ({ target }) => { // X̂ is deleted with its job; the crop stays
      target.onerror = null;
      if (kernel.picture && kernel.crop) target.src = kernel.crop;
    };
    seeing.observe(item);
  }
  tiles.set(kernel.kernel, item);
  return item;
}

// The choice is in the address, so that it can be bookmarked.
function remember() {
  const choice = new URLSearchParams();
  if ($("sort").value !== "kernel") choice.set("sort", $("sort").value);
  if ($("find").value) choice.set("find", $("find").value);
  if ($("active").checked) choice.set("active", "yes");
  history.replaceState(null, "", `${location.pathname}${location.search}${choice.size ? `#${choice}` : ""}`);
}

function recall() {
  const choice = new URLSearchParams(location.hash.slice(1));
  $("sort").value = choice.get("sort") in ORDERS ? choice.get("sort") : "kernel";
  $("find").value = choice.get("find") ?? "";
  $("active").checked = choice.has("active");
}

const choose = guard(() => {
  remember();
  if (page) draw();
});

function begin() {
  $("sort").append(...Object.entries(ORDERS).map(([name, { says }]) => new Option(says, name)));
  recall();
  heading(network);
  $("choice").addEventListener("input", choose);
  $("choice").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = $("find").value.trim();
    if (page?.kernels.some((kernel) => String(kernel.kernel) === wanted)) location.assign(new URL(address(network, layerName, wanted), document.baseURI));
  });
  open(show).then(() => titleOf(network)).then(heading).catch(() => {}); // without a title there is the name
}

begin();
