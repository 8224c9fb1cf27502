// The page: what is chosen becomes a job, the job is followed, its results are shown. All through the public HTTP API.

import * as choose from "./choose.js";
import { $, button, link, make, numbersIn } from "./dom.js";
import { detail, OPTIMIZED, summary, variants as variantsOf, whole } from "./result.js";
import { ask, ended, follow, signOut } from "./server.js";

let job = null; // that is shown
let results = new Map(); // by index
let place = 0; // the group of results that is looked at: one image and kernel
let index = null; // the result of that group that is looked at
let stop = () => {};

const guard = (action) => async (...given) => {
  notice("");
  try {
    await action(...given);
  } catch (error) {
    notice(error.message);
  }
};

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

// One job after another

const run = guard(async () => {
  const bound = numbersIn("target_ssim", "SSIM");
  const gamma = numbersIn("gamma", "γ");
  if (gamma.length > 1) throw new Error("γ: one number; several α or β can be compared, γ not");
  const evidence = $("methods").querySelector("[value=evidence]").checked;
  const body = {
    ...choose.choice(),
    methods: [...$("methods").querySelectorAll(":checked")].map((box) => box.value),
    alpha: numbersIn("alpha", "α"),
    beta: numbersIn("beta", "β"),
    effort: $("effort").value,
    only_remove: $("only_remove").checked,
    ...(bound.length ? { target_ssim: bound[0] } : {}),
    ...(bounded && !gamma.length && evidence ? { max_invention: bounded } : {}),
    ...(gamma.length && evidence ? { gamma: gamma[0] } : {}),
  };
  if (!body.methods.length) throw new Error("Choose at least one method.");
  for (const name of ["alpha", "beta"]) if (!body[name].length) delete body[name];
  $("run").disabled = true;
  try {
    const made = await choose.explained(body);
    history.pushState(null, "", `#job=${made.id}`);
    open(made);
  } finally {
    $("run").disabled = false;
  }
  $("outcome").focus();
  $("outcome").scrollIntoView({ block: "start" });
});

// Shows a job, and follows it until it has ended.
function open(found) {
  stop();
  job = found;
  results = new Map(job.results.map((result) => [result.index, result]));
  place = 0;
  index = null;
  $("outcome").hidden = false;
  $("outcome-title").textContent = `Kernels of ${job.request.layer} (${job.request.model})`;
  $("detail").replaceChildren();
  $("whole").replaceChildren();
  drawOverview();
  if (ended(job.status)) finish();
  else {
    progress();
    stop = follow(job.id, { status: changed, progress: stepped, result: came, lost });
  }
}

async function changed(status) {
  if (status === job.status && !ended(status)) return;
  job.status = status;
  if (!ended(status)) {
    progress();
    return;
  }
  const { id } = job;
  try {
    const found = await ask(`/jobs/${id}`);
    if (job.id !== id) return;
    job = found;
    results = new Map(job.results.map((result) => [result.index, result]));
    drawOverview();
    finish();
  } catch (error) {
    notice(error.message);
  }
}

function stepped(step) {
  Object.assign(job.progress, step);
  job.status = "running";
  progress();
  for (const { index: at, iteration, preview } of step.items ?? []) {
    const tile = $("overview").children[Math.floor(at / variants())];
    if (!tile || at % variants() || results.has(at)) continue;
    tile.lastElementChild.textContent = `evaluation ${iteration}`;
    if (preview) form(tile, `/jobs/${job.id}/previews/${at}?evaluation=${preview}`);
  }
}

// The next picture takes the place of the last once it is there.
function form(tile, src) {
  const next = make("img", { alt: "", src });
  next.decode().then(() => {
    if (tile.isConnected && tile.classList.contains("forming")) tile.firstElementChild.replaceWith(next);
  }).catch(() => {}); // it was taken away meanwhile: the result is there
}

function came(result) {
  results.set(result.index, result);
  job.progress.completed = results.size;
  progress();
  const at = Math.floor(result.index / variants());
  drawTile(at);
  if (index === null && result.index % variants() === 0) look(at, result.index);
  else if (index !== null && at === place) {
    const { members } = groups()[at];
    $("detail").querySelector(".methods").replaceWith(variantsOf(results.get(index), members, (other) => look(at, other.index)));
  }
}

function lost() {
  $("status").textContent = "The connection was lost; trying again …";
}

// Where it stands

let idle = null; // looks whether there is a worker, while the job waits

function progress() {
  const { completed, total, iteration, budget } = job.progress;
  const running = job.status === "running";
  $("running").classList.remove("ended");
  $("cancel").hidden = false;
  $("progress").hidden = false;
  if (running && total) $("progress").value = (completed + ((total - completed) * (iteration ?? 0)) / (budget || 1)) / total;
  else if (running) $("progress").removeAttribute("value");
  else $("progress").value = 0;
  const loss = job.progress.loss ? `, loss ${job.progress.loss.toFixed(3)}` : "";
  say(running ? `Running: ${completed} of ${total ?? "?"} done${loss}` : `Waiting${job.queue_position ? `, place ${job.queue_position} in the queue` : ""} …`);
  clearTimeout(idle);
  if (!running) idle = setTimeout(workers, 700);
}

async function workers() {
  const { id } = job;
  const state = await fetch("/readyz").then((answer) => answer.json()).catch(() => null);
  if (job.id !== id || job.status !== "queued") return;
  if (state?.workers && !state.workers.some((worker) => worker.ready)) {
    say("Waiting: no worker is connected. The job starts by itself once there is one; this page may be closed meanwhile.");
  }
  idle = setTimeout(workers, 3000);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function finish() {
  clearTimeout(idle);
  $("running").classList.add("ended");
  $("cancel").hidden = true;
  $("progress").hidden = true;
  const done = [...results.values()].filter((result) => result.status === "succeeded").length;
  const failed = job.failed_items ? `, ${job.failed_items} failed` : "";
  const words = { succeeded: `Done: ${done} explained${failed}.`, cancelled: `Cancelled: ${done} were finished.`, failed: `Failed: ${job.error?.detail ?? "no explanation could be made"}` };
  say(words[job.status]);
  const first = [...results.values()].find((result) => result.status === "succeeded") ?? [...results.values()][0];
  const still = results.get(index);
  if (still) look(place, index);
  else if (first) look(Math.floor(first.index / variants()), first.index);
  if (results.size) $("whole").replaceChildren(...whole(job, guard(again), choose.nameOf));
}

// The explanations: a tile for each image and kernel

function variants() {
  const { methods, alpha, beta } = job.request;
  return methods.reduce((sum, method) => sum + (OPTIMIZED.includes(method) ? alpha.length * beta.length : 1), 0);
}

function groups() {
  const { images, kernels } = job.request;
  const count = Array.isArray(kernels) ? kernels.length : Number(kernels.slice("top:".length));
  return Array.from({ length: images.length * count }, (_, at) => ({
    image: Math.floor(at / count),
    kernel: Array.isArray(kernels) ? kernels[at % count] : null,
    members: Array.from({ length: variants() }, (__, number) => results.get(at * variants() + number)).filter(Boolean),
  }));
}

const imageName = (at) => choose.nameOf(job.request.images[at]) ?? (job.request.images.length > 1 ? `image ${at}` : "the image");

function drawOverview() {
  $("overview").replaceChildren(...groups().map((_, at) => {
    const tile = button("", () => look(at), { className: "tile" });
    tile.append(make("span", { className: "nothing" }), make("span"), make("span"));
    return tile;
  }));
  groups().forEach((group, at) => {
    if (ended(job.status) && !group.members.length) $("overview").children[at].hidden = true; // "top:N", and fewer are active
    drawTile(at);
  });
}

function drawTile(at) {
  const tile = $("overview").children[at];
  const { image, kernel, members } = groups()[at];
  const best = members.find((result) => result.status === "succeeded") ?? members[0];
  const forming = !ended(job.status) && !results.has(at * variants()); // the first method is what the tile shows
  const called = best?.kernel ?? kernel;
  const several = job.request.images.length > 1 ? `, ${imageName(image)}` : "";
  tile.children[1].textContent = `${called === null ? `no. ${at + 1} by activation` : `kernel ${called}`}${several}`;
  tile.classList.toggle("forming", forming);
  tile.ariaPressed = String(at === place && index !== null);
  tile.disabled = !best;
  if (forming) tile.children[2].textContent = members.length ? `${members.length} of ${variants()} explanations` : "waits";
  else if (!best) tile.children[2].textContent = job.status;
  else tile.children[2].textContent = members.length > 1 ? `${members.length} explanations` : summary(best);
  if (!forming && best?.artifacts["optimized.png"]) tile.firstElementChild.replaceWith(make("img", { alt: "", loading: "lazy", src: best.artifacts["optimized.png"] }));
}

function look(at, which = null) {
  place = at;
  const { image, members } = groups()[at];
  const result = members.find((each) => each.index === which) ?? members[0];
  index = result.index;
  [...$("overview").children].forEach((tile, number) => { tile.ariaPressed = String(number === place); });
  const parts = detail(job, result, members, imageName(image), (other) => look(at, other.index));
  $("detail").replaceChildren(...parts.filter(Boolean));
}

// The same again, changed

let bounded = null; // evidence's bound of a job that is run again; the form has its weight only

function again() {
  const { request } = job;
  const picture = (sha256) => [...results.values()].find((result) => result.image === sha256 && result.artifacts["original.png"])?.artifacts["original.png"];
  if (!request.images.every(picture)) throw new Error("An image of this job was never explained, so it cannot be shown; choose the images again.");
  for (const box of $("methods").querySelectorAll("input")) box.checked = request.methods.includes(box.value);
  for (const name of ["alpha", "beta"]) $(name).value = request[name].join(", ");
  $("effort").value = request.effort;
  $("target_ssim").value = request.target_ssim ?? "";
  $("gamma").value = request.gamma ?? "";
  bounded = request.max_invention;
  $("only_remove").checked = request.only_remove;
  choose.fill(request, picture);
  scrollTo({ top: 0 });
  $("run").focus({ preventScroll: true });
}

// History

let cursor = null;

const olderJobs = guard(async () => {
  const page = await ask(`/jobs?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  const own = page.jobs.filter((each) => each.request.methods[0] !== "activations");
  $("jobs").append(...own.map(row));
  cursor = page.next_cursor;
  $("older").hidden = !cursor;
  if (!$("jobs").children.length && !cursor) $("jobs").append(make("p", {}, "No jobs yet. What you explain is listed here, and kept for as long as the operator has set."));
  else if (!own.length && cursor) await olderJobs();
});

function row(each) {
  const { kernels, layer, model, images, methods } = each.request;
  const called = Array.isArray(kernels) ? `kernel${kernels.length > 1 ? "s" : ""} ${kernels.join(", ")}` : `the ${kernels.replace(":", " ")} kernels`;
  const several = images.length > 1 ? `, ${images.length} images` : "";
  const how = methods.length > 1 ? `, ${methods.length} methods` : "";
  const line = make("p", {},
    make("span", { className: `state ${each.status}` }, each.status), " ",
    link(`${called} of ${layer} (${model})${several}${how}`, `#job=${each.id}`, { onclick: () => $("history").close() }), " ",
    make("time", { className: "faint", dateTime: each.created_at }, new Date(each.created_at).toLocaleString()), " ",
    button("Delete", guard(async () => {
      if (!confirm("Delete this job and its pictures for good?")) return;
      await ask(`/jobs/${each.id}`, { method: "DELETE" });
      line.remove();
    }), { ariaLabel: `Delete the job on ${called} of ${layer}` }));
  return line;
}

// What the address says

const goTo = guard(async () => {
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  if (!id || id === job?.id) return;
  const found = await ask(`/jobs/${encodeURIComponent(id)}`);
  if (found.request.methods[0] === "activations") throw new Error("This job ranks the kernels of a layer; it explains none.");
  open(found);
});

function begin() {
  choose.start(guard);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("cancel").addEventListener("click", guard(async () => { await ask(`/jobs/${job.id}/cancel`, { method: "POST" }); }));
  $("open-history").addEventListener("click", () => {
    cursor = null;
    $("jobs").replaceChildren();
    $("history").showModal();
    olderJobs();
  });
  $("older").addEventListener("click", olderJobs);
  $("close-history").addEventListener("click", () => $("history").close());
  $("sign-out").hidden = !sessionStorage.getItem("signed-in");
  $("sign-out").addEventListener("click", guard(signOut));
  $("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  $("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
  $("drop").addEventListener("drop", guard((event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    choose.addFiles(event.dataTransfer.files);
  }));
  addEventListener("paste", guard((event) => { if (event.clipboardData.files.length) choose.addFiles(event.clipboardData.files); }));
  addEventListener("hashchange", goTo);
  guard(choose.loadModels)().then(goTo);
}

begin();
