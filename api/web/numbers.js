// Numbers as people write them. A comma between two digits may be a decimal comma: it never separates numbers by itself.

const NUMBER = /^(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const DECIMAL = /^\d+,\d+$/;
const THOUSANDS = /^\d+,\d{3}$/;

// The numbers in a text; throws a sentence where it is not clear what is meant. `whole`: indices, which have no decimals,
// so that commas separate them. `one`: a single number. `large`: one of which a comma may separate thousands.
export function numbersOf(text, called, { whole = false, one = false, large = false } = {}) {
  const parts = text.replaceAll(whole && !one ? "," : /,(?=\s|$)/g, ";").split(/[\s;]+/).filter(Boolean);
  const numbers = parts.map((part) => numberOf(part, called, { whole, large, decimal: one || text.includes(";") }));
  if (one && numbers.length > 1) throw new Error(`${called}: give one number, not ${numbers.length}.`);
  return numbers;
}

function numberOf(part, called, { whole, large, decimal }) {
  if (whole && /\d,\d/.test(part)) throw new Error(`${called}: “${part}” is not a whole number. Write it without a comma.`);
  if (large && THOUSANDS.test(part)) throw new Error(either(part, called, part.replace(",", "")));
  const number = DECIMAL.test(part) && decimal ? part.replace(",", ".") : part;
  if (/\d,\d/.test(number)) throw new Error(question(number, called));
  if (!NUMBER.test(number) || (whole && !/^\d+$/.test(number)) || !Number.isFinite(Number(number))) {
    throw new Error(`${called}: “${part}” is not a ${whole ? "whole " : ""}number of at least 0. Separate several numbers by semicolons.`);
  }
  return Number(number);
}

function either(part, called, meant, written = meant) {
  const decimal = part.replace(",", ".");
  return `${called}: does “${part}” mean ${decimal}, or ${meant}? Write ${decimal}, or ${written}.`;
}

function question(part, called) {
  const several = part.replaceAll(",", "; ");
  return DECIMAL.test(part) ? either(part, called, part.replace(",", " and "), several)
    : `${called}: “${part}” can be read in several ways. Separate the numbers by semicolons: ${several}.`;
}
