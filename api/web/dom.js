// Elements: found, made, and their text.

import { numbersOf } from "./numbers.js";

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const button = (text, onclick, properties = {}) => make("button", { type: "button", onclick, ...properties }, text);

export const link = (text, href, properties = {}) => make("a", { href, ...properties }, text);

// The numbers in a text box; throws a sentence, with the box's id as `box`, where they cannot be read.
export function numbersIn(id, called, options) {
  try {
    return numbersOf($(id).value, called, options);
  } catch (error) {
    throw Object.assign(error, { box: id });
  }
}

// Moves the focus to the box that an error is about.
export function reveal({ box }) {
  if (!box) return;
  $(box).closest("details")?.setAttribute("open", "");
  $(box).focus();
}

// Changes text only where it differs, so that screen readers announce it once.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Numbers for a sentence.
export const shown = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export function about(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${Math.round(seconds / 3600)} h`;
}
export const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

// What a network's input is.
export function fed(preprocessing) {
  if (!preprocessing) return "";
  const { mean, std, range, order, resize, assumed } = preprocessing;
  const numbers = (values) => values.map((value) => Number(value.toPrecision(3))).join(" ");
  return `; inputs ${order.toUpperCase()} from ${range.replace("-", " to ")}, mean ${numbers(mean)}, std ${numbers(std)}${resize === "crop" ? ", the middle of the image" : ""}${assumed ? ": assumed, ImageNet's" : ""}`;
}
