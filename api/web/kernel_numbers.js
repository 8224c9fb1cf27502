// The numbers of a kernel, each with a sentence on what it means: scores, activity, histogram, and kernels like it.

import { link, make } from "./dom.js";
import { count, number, share } from "./pages.js";

const LABELS = 6; // at most, below the histogram

const row = (name, value, meaning) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value), make("td", {}, meaning));

export function scores(explanation) {
  const { consistency, discrimination, colour, made = 0 } = explanation ?? {};
  const value = (score) => (score ? `${score.value.toFixed(2)}${score.error === null ? "" : ` ± ${score.error.toFixed(2)}`}` : "–");
  const said = (score, meaning, missing) => (score ? meaning : `${meaning} ${missing}`);
  return [
    row("Consistency", value(consistency), said(consistency,
      "How similar its X̂ of different images are. Near 1 the kernel responds to the same thing in all of them, near 0 to something else in each.", "Measured once there are two X̂.")),
    row("Discrimination", value(discrimination), said(discrimination,
      "How often its X̂ is more similar to its X̂ of another image than to another kernel's X̂ of the same image. At 1 the kernel determines X̂, at 0.5 the image does.", explanation?.rivals ? "There are too few X̂ of other kernels to measure it." : "Measured once it is compared with other kernels.")),
    row("Colour", value(colour), said(colour,
      "How much of the kernel's map is lost when X̂ is made grey. At 0 it responds to shape alone, at 1 to colour.", made ? "Not measured of these X̂." : "Measured once X̂ are made.")),
  ];
}

export function activity({ mean, max, active, active_images: images, survey, layer }) {
  const of = layer.signed ? "|activation|, as the maps of this layer have a sign," : "activation";
  return [
    row("Mean", number(mean), `${of} over all positions of all images.`),
    row("Highest", number(max), "at one position of one image."),
    row("Positions", share(active), "of all positions of all images are active."),
    row("Images", share(images), `of the ${count(survey.images)} images have an active position.`),
  ];
}

// The distribution of the images' highest activations, as bars and as a table.
export function histogram({ histogram: bins, survey }) {
  const silent = bins.filter((bin) => bin.start === 0).reduce((sum, bin) => sum + bin.images, 0);
  const above = bins.filter((bin) => bin.start > 0);
  const used = above.filter((bin) => bin.images);
  if (!used.length) return [];
  const shown = above.slice(above.indexOf(used[0]), above.indexOf(used.at(-1)) + 1);
  const most = used.reduce((best, bin) => (bin.images > best.images ? bin : best));
  const words = `${silent ? `The kernel is silent on ${count(silent)} of ${count(survey.images)} images; in the others it reaches` : "It reaches"} ${range(used[0], used.at(-1))}, most often ${range(most, most)} (${count(most.images)} images).`;
  const every = Math.ceil(shown.length / LABELS);
  const bars = shown.map((bin, at) => {
    const bar = make("i", { title: `${range(bin, bin)}: ${count(bin.images)}` });
    bar.style.height = `${(100 * bin.images) / most.images}%`;
    return make("div", {}, make("span", { className: "column" }, bar), make("span", { className: "label" }, at % every ? "" : number(bin.start)));
  });
  return [
    make("h3", {}, "Highest activation in each image"),
    make("p", {}, words),
    make("div", { className: "bars", role: "img", ariaLabel: `Histogram. ${words}` }, ...bars),
    make("details", {}, make("summary", {}, "As a table"), table(silent, shown)),
  ];
}

const range = (first, last) => (last.end === null ? `${number(first.start)} and more` : `${number(first.start)} to ${number(last.end)}`);

function table(silent, bins) {
  const line = (name, images) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, count(images)));
  return make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "highest activation"), make("th", { scope: "col" }, "images"))),
    make("tbody", {}, line("silent", silent), ...bins.map((bin) => line(range(bin, bin), bin.images))));
}

export function similar({ kernel, correlation, crop }, href) {
  const picture = crop ? make("img", { loading: "lazy", src: crop, alt: "" }) : make("span", { className: "nothing" }, "silent");
  const tile = link("", href, { className: "tile" });
  tile.append(picture, make("span", {}, `kernel ${kernel}`), make("span", {}, `correlation ${correlation.toFixed(2)}`));
  return make("li", {}, tile);
}
