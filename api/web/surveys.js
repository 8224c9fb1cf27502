// Links to the pages of kernels, where there are surveys.

import { $, link, make } from "./dom.js";
import { ask } from "./server.js";

const FIRST = 5; // surveys that are listed

export const address = (model, layer, survey) => `kernels/${encodeURIComponent(model)}/${encodeURIComponent(layer)}?survey=${survey}`;

export async function show() {
  const surveys = await ask("surveys");
  $("surveys").hidden = !surveys.length;
  $("survey-list").replaceChildren(...surveys.slice(0, FIRST).map(row));
}

function row({ id, dataset_name: name, images, model, layers, status }) {
  const state = status === "succeeded" ? "" : `, ${status}`;
  return make("li", {}, `${name} (${images.toLocaleString("en")} images${state}), ${model}: `,
    ...layers.flatMap((layer, at) => [at ? ", " : "", link(layer, address(model, layer, id))]));
}
