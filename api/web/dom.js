// Elements: made, found, and their text.

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

// What a label's box holds, as numbers; throws a sentence where it holds something else.
export function numbersIn(id, called, { whole = false } = {}) {
  const parts = $(id).value.split(/[\s,;]+/).filter(Boolean);
  const numbers = parts.map(Number);
  const wrong = parts.find((_, at) => !(numbers[at] >= 0) || (whole && !Number.isInteger(numbers[at])));
  if (wrong !== undefined) {
    $(id).focus();
    throw new Error(`${called}: “${wrong}” is not a ${whole ? "whole " : ""}number of at least 0; several are separated by commas`);
  }
  return numbers;
}

// In a sentence, to a sensible number of digits.
export const shown = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export function about(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${Math.round(seconds / 3600)} h`;
}
export const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

export function fed(preprocessing) {
  if (!preprocessing) return "";
  const { mean, std, range, order, resize, assumed } = preprocessing;
  const numbers = (values) => values.map((value) => Number(value.toPrecision(3))).join(" ");
  return `; inputs ${order.toUpperCase()} from ${range.replace("-", " to ")}, mean ${numbers(mean)}, std ${numbers(std)}${resize === "crop" ? ", the middle of the image" : ""}${assumed ? ": assumed, ImageNet's" : ""}`;
}
