// One explanation in detail: X against X̂, the maps, the others, the loss, the numbers, the files.

import { $, button, fed, link, make, percent, shown } from "./dom.js";
import * as recipes from "./recipes.js";
import { OPTIMIZED } from "./request.js";

const METHODS = { evidence: "evidence", suppression: "suppression", guided_backprop: "guided backpropagation", deconvnet: "deconvolution", lrp: "LRP" };

const STOPPED = {
  converged: "It ended because further steps improved nothing.",
  budget: "It used all of its evaluations.",
  deadline: "It was stopped by the deadline.",
  cancelled: "It was cancelled.",
};

// What distinguishes this explanation from the others of the same kernel and image.
export function variantOf(result, siblings) {
  const same = siblings.filter((each) => each.method === result.method);
  const several = (name) => new Set(same.map((each) => each[name])).size > 1;
  const parts = [METHODS[result.method]];
  if (several("alpha")) parts.push(`α = ${result.alpha}`);
  if (several("beta")) parts.push(`β = ${result.beta}`);
  return parts.join(", ");
}

export function detail(job, result, siblings, imageName, choose) {
  const where = `Kernel ${result.kernel ?? "?"} of ${job.request.layer} (${job.request.model}) in ${imageName}`;
  const title = make("h3", {}, siblings.length > 1 ? `${where}, by ${variantOf(result, siblings)}` : where);
  if (result.status !== "succeeded") {
    const why = result.error ? `${result.error.title}: ${result.error.detail}` : `This explanation was ${result.status} before it was finished.`;
    return [title, variants(result, siblings, choose), make("p", { className: "error" }, why)];
  }
  return [
    title,
    variants(result, siblings, choose),
    result.note ? make("p", { className: "note" }, result.note) : "",
    make("div", { className: "looking" }, viewer(result), pictures(result)),
    numbers(job, result),
    curve(result),
    files(job, result),
  ];
}

export function variants(result, siblings, choose) {
  if (siblings.length < 2) return make("div", { className: "methods" });
  return make("div", { className: "methods", role: "group", ariaLabel: "Methods and weights side by side" }, ...siblings.map((each) => {
    const tile = button("", () => choose(each), { className: "tile", ariaPressed: String(each === result) });
    tile.append(each.artifacts["optimized.png"] ? make("img", { src: each.artifacts["optimized.png"], alt: "" }) : make("span", { className: "nothing" }),
      make("span", {}, variantOf(each, siblings)), make("span", {}, summary(each)));
    return tile;
  }));
}

export function summary(result) {
  if (result.status !== "succeeded") return result.error?.title ?? result.status;
  return `SSIM ${shown(result.metrics.ssim, 2)}, others ${percent(result.metrics.leakage)}`.replaceAll(/ (?!others)/g, "\u00a0"); // breaks before "others" only
}

function viewer(result) {
  const { artifacts } = result;
  const original = make("img", { src: artifacts["original.png"], alt: "the original image" });
  const optimized = make("img", { src: artifacts["optimized.png"], alt: `what kernel ${result.kernel} responds to: the optimized image` });
  const line = make("i");
  const stack = make("div", { className: "stack" }, original, optimized, line);
  const frame = make("div", { className: "frame", tabIndex: 0, role: "region", ariaLabel: "Original and optimized image" }, stack);
  const slide = make("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "How much of the original is shown, from the left" });
  const move = () => {
    optimized.style.clipPath = `inset(0 0 0 ${slide.value}%)`;
    line.style.left = `calc(${slide.value}% - 1px)`;
  };
  slide.addEventListener("input", move);
  move();
  const stretch = make("input", { type: "checkbox", onchange: () => { optimized.src = artifacts[stretch.checked ? "contrast.png" : "optimized.png"]; } });
  const zoom = make("select", { onchange: () => { stack.style.width = `${100 * zoom.value}%`; } },
    ...[1, 2, 4, 8].map((factor) => new Option(`${factor} ×`, factor)));
  return make("div", { className: "viewer" }, frame,
    make("div", { className: "tools" },
      make("div", { className: "slide" }, make("div", { className: "ends" }, make("span", {}, "X, the original"), make("span", {}, "X̂, what the kernel responds to")), make("label", {}, slide)),
      make("label", {}, stretch, "stretch the contrast"),
      make("label", {}, "zoom", zoom)));
}

function pictures(result) {
  const { artifacts, kernel } = result;
  const figure = (name, alt, caption) => make("figure", {}, make("img", { src: artifacts[name], alt, loading: "lazy" }), make("figcaption", {}, caption));
  return make("div", {},
    make("div", { className: "maps" },
      figure("feature_map.png", `feature map of kernel ${kernel} in the original`, `F: kernel ${kernel} in the original`),
      figure("optimized_feature_map.png", `feature map of kernel ${kernel} in the optimized image`, "F̂: in X̂, on the same scale"),
      figure("difference.png", "difference of the two maps", "F̂ − F: blue lower, red higher")),
    make("figure", {}, make("img", { className: "figure", src: artifacts["others.png"], alt: "feature maps of the most active other kernels, before and after", loading: "lazy" }),
      make("figcaption", {}, "The most active other kernels: in the original, and in X̂, where they should not be active.")));
}

function numbers(job, result) {
  const { metrics, losses } = result;
  const ratio = metrics.mse_others_before ? metrics.mse_others / metrics.mse_others_before : 0;
  const evaluations = OPTIMIZED.includes(result.method) ? `${result.iterations} evaluations, ` : "";
  const rows = [
    ["Map kept (SSIM)", shown(metrics.ssim), kept(job, result)],
    ["Others left", percent(metrics.leakage), "of the other kernels' activation; at 0 % no other kernel responds to X̂."],
    ["Their mean square", percent(ratio), `of what it was (${metrics.mse_others.toPrecision(3)} of ${metrics.mse_others_before.toPrecision(3)}): the paper's MSE.`],
    ...(typeof metrics.invention === "number" ? [["Invented", percent(metrics.invention), invented(job, metrics)]] : []),
    ...(typeof metrics.ssim_grey === "number" ? [["Without colour", shown(metrics.ssim_grey), "SSIM of the map when X̂ is made grey: near 1, the kernel responds to shape alone."]] : []),
    ["Grey", percent(metrics.sparsity), "of the pixels are the mean colour: the kernel does not need them."],
    ["Loss", shown(losses.total), loss(result)],
    ["Time", `${shown(result.seconds, 1)} s`, `${evaluations}on ${result.device}. ${STOPPED[result.stopped] ?? ""}${result.reused ? " Reused from an earlier job with the same work." : ""}`],
  ];
  if (result.target_met === false) rows.push(["Bound", "not kept", "No picture of 8 bits was found that keeps the requested bound."]);
  return make("div", {},
    make("h3", {}, "Numbers"),
    make("p", { className: "faint" }, `Measured on the delivered 8-bit picture, fed back through ${job.request.model} (${result.weights.source}${fed(result.weights.preprocessing)}).`),
    make("div", { className: "scroll" }, make("table", {}, make("tbody", {}, ...rows.map(([name, value, meaning]) =>
      make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value), make("td", {}, meaning)))))));
}

function kept({ request }, { method, metrics: { ssim } }) {
  if (ssim === null) return "The map is too small for an SSIM; compare the maps.";
  if (ssim >= 0.9) return "The kernel's feature map is almost the same in X̂ (1: identical).";
  if (ssim >= 0.5) return "The kernel's feature map is kept in part (1: identical).";
  const solver = request.solver === "reference" ? ", with the fast solver" : "";
  const advice = OPTIMIZED.includes(method) ? ` Set an SSIM of at least 0.95 under “More options”${solver}.` : "";
  return `The kernel's feature map is lost in X̂, so X̂ does not show what the kernel responds to.${advice}`;
}

function invented({ request }, { invention_by_layer: layers }) {
  const [worst, share] = Object.entries(layers ?? {}).reduce((most, each) => (each[1] > most[1] ? each : most), ["", 0]);
  const where = worst ? ` Most of it is in ${worst} (${percent(share)}).` : "";
  if (!worst) return `No layer is below ${request.layer}, so there is nothing to measure.`;
  return `is the activation below ${request.layer} that X̂ causes and the image does not, relative to the image's: near 0 %, X̂ shows what is in the image.${where}`;
}

function loss({ losses, alpha, beta, loss_start: start, loss_blank: blank }) {
  const terms = `= ${shown(losses.preservation)} preservation + ${alpha} · ${shown(losses.suppression)} suppression + ${beta} · ${shown(losses.regularization)} regularization.`;
  const better = losses.total < Math.min(start, blank);
  const than = `The original has ${shown(start)}, an empty picture ${shown(blank)}`;
  return `${terms} ${than}${better ? ": X̂ is better than both." : "; X̂ is not better than both, so it explains little."}`;
}

// The loss curve, drawn by uPlot, which is loaded with the first curve.
let plotting = null;

const plotter = () => (plotting ??= new Promise((loaded, failed) => {
  document.head.append(make("link", { rel: "stylesheet", href: "web/uPlot.min.css" }),
    make("script", { src: "web/uPlot.min.js", onload: () => loaded(window.uPlot), onerror: failed }));
}));

function curve(result) {
  if (!OPTIMIZED.includes(result.method)) return null;
  const box = make("div", { className: "plot", role: "img", ariaLabel: `Loss curve: from ${shown(result.loss_start)} to ${shown(result.losses.total)} in ${result.iterations} evaluations` });
  Promise.all([plotter(), fetch(result.artifacts["history.json"]).then((answer) => answer.json())]).then(([Plot, history]) => {
    if (box.isConnected) drawCurve(Plot, box, history);
  }).catch(() => { box.textContent = "The loss curve cannot be drawn now; its numbers are in history.json."; });
  return make("div", {}, make("h3", {}, "Loss"), box);
}

function drawCurve(Plot, box, { columns, rows }) {
  const style = getComputedStyle(box);
  const [ink, faint] = [style.color, style.getPropertyValue("--line")];
  const colours = { preservation: "#4c9be8", suppression: "#e0872d", regularization: "#9a6ee0", total: ink };
  const axis = { stroke: ink, grid: { stroke: "rgb(128 128 128 / 0.25)" }, ticks: { stroke: faint } };
  const plot = new Plot({
    width: box.clientWidth, height: 240,
    scales: { x: { time: false } },
    series: [{ label: "evaluation" }, ...columns.slice(1).map((label) => ({ label, stroke: colours[label], width: label === "total" ? 2.5 : 1.5, value: (_, value) => shown(value) }))],
    axes: [axis, axis],
  }, columns.map((_, at) => rows.map((row) => row[at])), box);
  new ResizeObserver(() => { if (box.isConnected) plot.setSize({ width: box.clientWidth, height: 240 }); }).observe(box);
}

function files(job, result) {
  const names = {
    "optimized.png": "X̂", "contrast.png": "X̂, contrast stretched", "optimized.npy": "X̂ as numbers", "maps.npz": "feature maps",
    "history.json": "loss curve", "panel.png": "a figure of all of it",
  };
  return make("div", {},
    make("h3", {}, "Files"),
    make("ul", { className: "files" }, ...Object.entries(names).map(([name, says]) =>
      make("li", {}, link(`${says} (${name.split(".").pop().toUpperCase()})`, result.artifacts[name], { download: `kernel${result.kernel}-${name}` })))),
    make("p", {}, link(`Kernel ${result.kernel} of ${job.request.layer} in many images`, `kernels/${encodeURIComponent(job.request.model)}/${encodeURIComponent(job.request.layer)}/${result.kernel}`)));
}

// The job as a whole: comparisons, all files in one, and how to run it again.
export function whole(job, results, change, name) {
  const parts = [];
  const { links, request } = job;
  const succeeded = results.filter((result) => result.status === "succeeded");
  if (links.contact_sheet && succeeded.length) {
    parts.push(make("h3", {}, "All images side by side"), sheet(links.contact_sheet, "contact sheet: images, maps and explanations side by side"),
      make("p", { className: "faint" }, "Consistency: how alike X̂ of one kernel is in all images; ", link("all numbers", links.consistency)));
  }
  if (request.alpha.length * request.beta.length > 1) {
    for (const method of OPTIMIZED) {
      const first = succeeded.find((result) => result.method === method);
      if (first) parts.push(make("h3", {}, `All α and β side by side, by ${METHODS[method]}`), sheet(first.artifacts["sweep.png"], `X̂ and its map for each α and β, by ${METHODS[method]}`));
    }
  }
  const address = new URL(`#job=${job.id}`, document.baseURI).href;
  parts.push(
    make("h3", {}, "Save and run again"),
    make("p", {}, link("Download everything (ZIP)", links.bundle), " · ", link("Link to this result", address), ` · kept until ${new Date(job.expires_at).toLocaleDateString()} · `,
      button("Change and run again", change)),
    recipe(request, name));
  return parts;
}

const LANGUAGES = { curl: recipes.curl, "command line": recipes.commandLine, Python: recipes.python };

// The job as a command or a program, in one of several languages.
function recipe(request, name) {
  const place = { server: new URL(".", document.baseURI).href, key: !$("sign-out").hidden, name };
  const language = make("select", {}, ...Object.keys(LANGUAGES).map((each) => new Option(each)));
  const box = make("pre", { tabIndex: 0, role: "region", ariaLabel: "The same job as text" });
  const write = () => { box.textContent = LANGUAGES[language.value](request, place); };
  language.addEventListener("change", write);
  write();
  return make("div", {}, make("div", { className: "tools" }, make("label", {}, "The same by", language), copyButton(box)), box);
}

const sheet = (src, alt) => make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: alt }, make("img", { className: "figure", src, alt, loading: "lazy" }));

function copyButton(box) {
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(box.textContent);
      copy.textContent = "Copied";
    } catch { // not allowed, or a page without TLS
      getSelection().selectAllChildren(box);
      copy.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  return copy;
}
