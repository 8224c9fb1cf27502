// A kernel's page: the images that activate it most beside their X̂, which are made when the page is first opened.

import { $, link, make, say } from "./dom.js";
import { ended } from "./events.js";
import { activity, histogram, scores, similar } from "./kernel_numbers.js";
import { address, guard, inAddress, left, load, number, open, surveyed, titleOf, unfinished, watch } from "./pages.js";
import { ask, submit } from "./server.js";

const SHOWN = 9; // X̂ that are made of a kernel by default
const STAY_MS = 400; // that a person must stay on the page before X̂ are made
const NEXT_EFFORT = { quick: "standard", standard: "thorough" };
const NO_LONGER = [404, 409, 410]; // a job that cannot be run again

const [network, layerName, own] = inAddress(3);

let page = null; // the data that is shown
let busy = false; // pictures are being made
let broken = []; // ids of jobs that did not succeed

// The page

function show(found) {
  const fresh = page?.survey.status !== found.survey.status; // it was opened, or the survey has ended meanwhile
  page = found;
  surveyed(page);
  unfinished(page.survey, show);
  const { explanation, layer, top, survey } = page;
  $("content").hidden = survey.status !== "succeeded" && !top.length;
  $("note").hidden = !explanation?.note;
  $("note").textContent = explanation?.note ?? "";
  $("making").hidden = $("scores").hidden = !top.length;
  $("score-rows").replaceChildren(...scores(explanation));
  $("activity-rows").replaceChildren(...activity(page));
  if (!fresh) return draw();
  neighbours();
  $("top").replaceChildren();
  $("where").textContent = `The receptive field of ${layer.name} is ${layer.receptive_field} × ${layer.receptive_field} pixels of the network's input; its maps have ${layer.height} × ${layer.width} positions.`;
  $("top-words").textContent = introduction();
  $("histogram").replaceChildren(...histogram(page));
  $("similar-part").hidden = !page.similar.length;
  $("similar").replaceChildren(...page.similar.map((one) => similar(one, address(network, layerName, one.kernel))));
  begin();
}

// What changes while X̂ are made.
function draw() {
  const cards = page.top.map((one, at) => card(one, $("top").children[at]));
  if (cards.length !== $("top").children.length) $("top").replaceChildren(...cards);
  tools();
}

function introduction() {
  const { top, survey } = page;
  if (!top.length) return `No image of “${survey.dataset_name}” activates this kernel, so there is nothing to show or to explain. Images of another data set may.`;
  return "Left: the part of the image in the receptive field of the kernel's most active position. Right: the same part of X̂, the emptiest picture that keeps the kernel's map. What is left in it is what the kernel responds to. Choose an X̂ to see all of it.";
}

function heading(title) {
  const [name, kernel] = [page?.layer.name ?? layerName, page?.kernel ?? own];
  $("title").textContent = `Kernel ${kernel} of ${name}, ${title}`;
  document.title = `Kernel ${kernel} of ${name}, ${title} – Kernelscope`;
  $("trail").replaceChildren(link("Kernelscope", "."), make("span", { ariaHidden: "true" }, "›"),
    link(`${name}, ${title}`, address(network, layerName)), make("span", { ariaHidden: "true" }, "›"),
    make("span", { ariaCurrent: "page" }, `kernel ${kernel}`));
}

function neighbours() {
  const { kernel, layer } = page;
  const to = (other, text, rel) => (other >= 0 && other < layer.kernels ? link(text, address(network, layerName, other), { rel }) : null);
  $("neighbours").replaceChildren(...[to(kernel - 1, `← kernel ${kernel - 1}`, "prev"), to(kernel + 1, `kernel ${kernel + 1} →`, "next"),
    make("span", { className: "faint" }, "or the keys ", make("kbd", {}, "←"), " and ", make("kbd", {}, "→"))].filter(Boolean));
}

// A card is made once; later only its X̂ changes, so that nothing moves.
function card(one, known) {
  if (known) {
    const [slot, words] = [known.querySelector(".after"), known.querySelector(".numbers")];
    const next = after(one);
    if (slot.dataset.state !== next.dataset.state) slot.replaceWith(next);
    words.textContent = numbers(one);
    return known;
  }
  return make("li", { className: "card" },
    make("h3", {}, one.name),
    make("div", { className: "pair" },
      make("figure", {}, make("img", { loading: "lazy", src: one.crop, alt: `the part of ${one.name} that activates kernel ${page.kernel} most` }), make("figcaption", {}, "image")),
      make("figure", {}, after(one), make("figcaption", {}, "X̂: what it responds to"))),
    make("p", { className: "numbers faint" }, numbers(one)));
}

function numbers({ activation, ssim }) {
  return `activation ${number(activation)}${typeof ssim === "number" ? ` · map kept (SSIM) ${ssim.toFixed(2)}` : ""}`;
}

function after(one) {
  const { explanation, kernel } = page;
  const asked = one.rank < Math.max(SHOWN, explanation?.of ?? 0);
  let slot;
  if (one.picture) {
    slot = make("button", { type: "button", className: "after", onclick: () => look(one) },
      make("img", { loading: "lazy", src: one.picture, alt: `X̂: what kernel ${kernel} responds to in ${one.name}; show all of it` }));
  } else {
    const words = one.error ?? (asked && busy ? "being made …" : "not made");
    slot = make("div", { className: `after nothing${one.error ? " error" : ""}` }, words);
  }
  slot.dataset.state = one.picture ?? slot.textContent;
  return slot;
}

// The whole image and X̂, with the maps of this kernel and of others.
function look(one) {
  $("whole-title").textContent = `X̂ of ${one.name}`;
  const alt = `the whole of ${one.name}, and its X̂ for kernel ${page.kernel}, with their feature maps`;
  $("whole-picture").ariaLabel = alt;
  $("whole-picture").replaceChildren(make("img", { className: "figure", src: one.whole, alt }));
  $("whole-words").replaceChildren(`What kernel ${page.kernel} needs of this image, as the network's input: its own map is kept, those of the others are silenced. `, link("The figure alone", one.whole));
  $("whole").showModal();
}

// What can be requested, and the state of what was

function tools() {
  const { explanation, top } = page;
  const some = top.length > 0 && explanation?.made > 0;
  const effort = NEXT_EFFORT[explanation?.effort];
  offer("better", some && effort, `Better pictures (${effort} effort, takes longer)`);
  offer("more", some && top.length > explanation.of, `Explain all ${top.length} images`);
  offer("compare", some && !explanation.discrimination && !explanation.rivals, "Compare with other kernels");
  if (!busy) state();
}

function offer(id, wanted, text) {
  const had = document.activeElement === $(id);
  $(id).textContent = text;
  $(id).hidden = !wanted;
  $(id).ariaDisabled = String(busy);
  if (had && !wanted) $("top-title").focus();
}

// The state as a sentence, where nothing is being made.
function state() {
  const { explanation, top } = page;
  $("progress").hidden = true;
  $("again").hidden = true;
  if (!explanation || !ended(explanation.status)) return;
  const { effort, job, made, method, of, status } = explanation;
  const errors = top.filter((one) => one.error && !one.picture);
  const done = `${made} X̂ made, by ${method} with ${effort} effort`;
  $("again").hidden = status === "succeeded" && !errors.length && !broken.length;
  if (status === "cancelled") say($("status"), `Cancelled: ${made} of ${of} X̂ are made.`);
  else if (status === "failed") failed(errors[0]?.error, job);
  else if (errors.length) say($("status"), `${done}; ${errors.length} could not be made.`);
  else say($("status"), broken.length ? `${done}. The comparison with other kernels failed.` : `${done}.`);
}

async function failed(error, id) {
  const words = (why) => say($("status"), `The X̂ could not be made${why ? `: ${why}` : "."}`);
  words(error);
  if (error) return;
  const job = await ask(`jobs/${id}`).catch(() => null); // it may be deleted
  if (job && !busy) words(job.error?.detail);
}

// Making X̂

// The first visit of a kernel's page has its X̂ made; a later one follows the job.
function begin() {
  const { explanation, survey, top } = page;
  const makes = top.length > 0 && survey.status === "succeeded" && !explanation;
  const compares = Boolean(explanation?.rivals) && !explanation.discrimination;
  busy = makes || compares || (explanation !== null && !ended(explanation.status));
  draw();
  if (!busy) return;
  if (!makes) followed([explanation.job, ...(compares ? [explanation.rivals] : [])]);
  else {
    say($("status"), "This page has not been opened before: X̂ of these images are being made.");
    whenVisible(() => request());
  }
}

// Once the page has been visible for a moment.
function whenVisible(action) {
  const wait = () => setTimeout(() => {
    if (document.visibilityState === "visible") action();
    else document.addEventListener("visibilitychange", wait, { once: true });
  }, STAY_MS);
  wait();
}

async function explain(wish) {
  if (!busy) await request(wish);
}

async function request(wish = {}) {
  const { explanation, kernel, layer, survey } = page;
  const more = explanation?.of > SHOWN ? { images: explanation.of } : {};
  const body = { layer: layer.name, kernels: [kernel], effort: explanation?.effort ?? "quick", ...more, ...wish };
  busy = true;
  try {
    const jobs = await submit(`${survey.links.self}/explanations`, body);
    await followed(jobs.map((job) => job.id));
  } catch (error) {
    lost(error);
  }
}

// Follows these jobs, showing each X̂ when it is made.
async function followed(ids) {
  busy = true;
  broken = [];
  $("again").hidden = true;
  $("progress").hidden = false;
  $("progress").value = 0;
  say($("status"), "Waiting …");
  draw();
  const refresh = async () => show(await load());
  try {
    const jobs = await watch(ids, { step: stepped, results: () => refresh().catch(() => {}) });
    broken = jobs.filter((job) => job.status !== "succeeded").map((job) => job.id);
    busy = false;
    await refresh();
  } catch (error) {
    lost(error);
  }
}

function lost(error) {
  busy = false;
  draw();
  say($("status"), error.message);
  $("again").hidden = false;
}

function stepped(at) {
  $("progress").value = Math.max($("progress").value, at.fraction);
  say($("status"), at.waiting ?? `${at.completed} of ${at.total || "?"} X̂ made${left(at)}`);
}

// Runs again what failed: the same job where there still is one.
const again = guard(async () => {
  if (busy) return;
  const ids = broken.length ? broken : [page.explanation?.job].filter(Boolean);
  try {
    for (const id of ids) await ask(`jobs/${id}/retry`, { method: "POST" });
  } catch (error) {
    if (!NO_LONGER.includes(error.problem?.status)) throw error;
    await explain();
    return;
  }
  await (ids.length ? followed(ids) : explain());
});

// The arrow keys lead to the neighbours, where they have no other function.
function keyed(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest?.("input, select, textarea, summary, .scroll")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  $("neighbours").querySelector(`[rel=${rel}]`)?.click();
}

heading(network);
$("again").addEventListener("click", again);
$("better").addEventListener("click", () => explain({ effort: NEXT_EFFORT[page.explanation.effort] }));
$("more").addEventListener("click", () => explain({ images: page.top.length }));
$("compare").addEventListener("click", () => explain({ rivals: true }));
addEventListener("keydown", keyed);
open(show).then(() => titleOf(network)).then(heading).catch(() => {}); // without a title there is the name
