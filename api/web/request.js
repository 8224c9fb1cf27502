// The form's options as a request, and a request in the form. Every option of `POST /explain` has a box.

import { $, numbersIn } from "./dom.js";
import * as kernels from "./kernels.js";
import { layer, model } from "./layers.js";

export const OPTIMIZED = ["suppression", "evidence"]; // the methods that optimise X̂, with α, β and a solver

const one = (id, called, options) => numbersIn(id, called, { one: true, ...options })[0] ?? null;
const several = (id, called) => {
  const numbers = numbersIn(id, called);
  return numbers.length ? numbers : null;
};
// How each box is read; null: the option is not set.
const READ = {
  alpha: () => several("alpha", "α"),
  beta: () => several("beta", "β"),
  effort: () => $("effort").value,
  solver: () => $("solver").value,
  iterations: () => one("iterations", "Evaluations", { whole: true }),
  target_ssim: () => one("target_ssim", "SSIM"),
  max_preservation: () => one("max_preservation", "Preservation loss"),
  only_remove: () => $("only_remove").checked,
  gamma: () => one("gamma", "γ"),
  max_invention: () => one("max_invention", "Invention"),
  rule: () => $("rule").value,
  scaling: () => $("scaling").value,
  deadline_s: () => one("deadline_s", "Deadline", { large: true }),
  webhook_url: () => $("webhook_url").value.trim() || null,
};

const boxes = () => [...$("methods").querySelectorAll("input")];
export const methods = () => boxes().filter((box) => box.checked).map((box) => box.value);

// The request, but for its images; throws a sentence where something is missing or cannot be read.
export function read() {
  if (!layer()) throw new Error("Choose a layer that the weights cover.");
  const body = { model: model().name, layer: layer().name, kernels: kernels.chosen(), methods: methods() };
  if (!body.methods.length) throw new Error("Choose at least one method.");
  for (const [name, value] of Object.entries(READ)) {
    if ($(name).matches(":disabled")) continue; // an option of a method that is not chosen
    const given = value();
    if (given !== null) body[name] = given;
  }
  return body;
}

// Enables the options of the methods that are chosen.
export function enable() {
  const chosen = methods();
  for (const group of document.querySelectorAll("[data-methods]")) {
    group.disabled = !group.dataset.methods.split(" ").some((method) => chosen.includes(method));
  }
}

export function fill(request) {
  for (const box of boxes()) box.checked = request.methods.includes(box.value);
  for (const name of Object.keys(READ)) {
    const value = request[name];
    if ($(name).type === "checkbox") $(name).checked = Boolean(value);
    else $(name).value = [value ?? ""].flat().join("; ");
  }
  enable();
}

// How many explanations a request makes of so many images; of those, how many are optimised.
export function counted(request, images) {
  const made = typeof request.kernels === "string" ? Number(request.kernels.slice("top:".length)) : request.kernels.length;
  const optimized = request.methods.filter((method) => OPTIMIZED.includes(method)).length;
  const weights = (request.alpha?.length ?? 1) * (request.beta?.length ?? 1);
  const others = request.methods.length - optimized;
  return { all: images * made * (optimized * weights + others), optimized: images * made * optimized * weights, kernels: made, each: optimized * weights + others };
}
