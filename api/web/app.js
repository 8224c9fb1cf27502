// The page: what is chosen becomes a job, the job is followed, its results are shown. All through the public HTTP API.

import * as choose from "./choose.js";
import { $, about, button, link, make, numbersIn } from "./dom.js";
import * as overview from "./overview.js";
import { whole } from "./result.js";
import { ask, ended, follow, signOut } from "./server.js";

let job = null; // that is shown
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

// Nothing of the job that was shown stays while another one is fetched.
function leave() {
  stop();
  clearTimeout(idle);
  job = null;
  $("outcome").hidden = true;
}

// Shows a job, and follows it until it has ended.
function open(found) {
  leave();
  job = found;
  pace = null;
  $("outcome").hidden = false;
  $("outcome-title").textContent = `Kernels of ${job.request.layer} (${job.request.model})`;
  $("whole").replaceChildren();
  overview.show(job);
  if (ended(job.status)) finish(job.results !== null);
  else {
    progress();
    stop = follow(job.id, { status: changed, progress: stepped, result: came, lost, gone });
  }
  if (ended(job.status) && job.results === null) readResults();
}

// Those of a job that is told without them. One that is followed is told each by its events.
const readResults = guard(async () => {
  const shown = job;
  for (let cursor = ""; cursor !== null;) {
    const page = await ask(`jobs/${shown.id}/results?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    if (job !== shown) return;
    page.results.forEach(overview.take);
    overview.settle();
    if (!cursor) drawWhole();
    cursor = page.next_cursor;
  }
  finish(true);
});

async function changed(status) {
  const shown = job;
  if (!ended(status)) {
    if (status === job.status) return;
    job.status = status;
    progress();
    return;
  }
  try {
    const found = await ask(`jobs/${shown.id}`);
    if (job !== shown || !ended(found.status)) return; // it had ended, and runs again
    job = found;
    finish(true);
  } catch (error) {
    notice(error.message);
  }
}

function stepped(step) {
  const { fraction } = job.progress;
  Object.assign(job.progress, step, { fraction: Math.max(fraction, step.fraction ?? 0) });
  job.status = "running";
  progress();
  (step.items ?? []).forEach(overview.forms);
}

function came(result) {
  overview.take(result);
  const at = job.progress;
  at.completed = Math.max(at.completed, overview.results.size);
  if (at.total) at.fraction = Math.max(at.fraction, at.completed / at.total);
  progress();
}

function lost() {
  $("status").textContent = "The connection was lost; trying again …";
}

function gone(error) {
  leave();
  notice(error.message);
}

// Where it stands

let idle = null; // looks where the job is in the queue, while it waits
let pace = null; // of a job that runs: when it was how far

function progress() {
  const { completed, total, fraction, loss } = job.progress;
  const running = job.status === "running";
  $("running").classList.remove("ended");
  $("cancel").hidden = false;
  $("retry").hidden = true;
  $("progress").hidden = false;
  if (running && !fraction && !total) $("progress").removeAttribute("value");
  else $("progress").value = fraction;
  if (running) pace ??= { at: Date.now(), fraction };
  say(running ? `Running: ${completed} of ${total ?? "?"} done${loss ? `, loss ${loss.toFixed(3)}` : ""}${estimate()}` : waiting());
  clearTimeout(idle);
  if (!running) idle = setTimeout(queue, 700);
}

// How long the rest takes: by the pace that was seen here, or as the server said.
function estimate() {
  const { fraction, seconds_left: told } = job.progress;
  const gained = fraction - pace.fraction;
  const seconds = gained >= 0.02 ? ((Date.now() - pace.at) / 1000) * (1 - fraction) / gained : told;
  return typeof seconds === "number" ? `, ${about(seconds)} left` : "";
}

function waiting() {
  const { queue_position: position, queue_seconds: seconds, waiting_for: missing } = job;
  if (missing) return `Waiting for ${missing}.`;
  const place = position ? `, place ${position} in the queue` : "";
  return `Waiting${place}${typeof seconds === "number" ? `, ${about(seconds)}` : ""} …`;
}

async function queue() {
  const shown = job;
  const [found, state] = await Promise.all([ask(`jobs/${shown.id}`).catch(() => null),
    fetch("readyz").then((answer) => answer.json()).catch(() => null)]);
  if (job !== shown || job.status !== "queued") return;
  if (found?.status === "queued") {
    const { queue_position, queue_seconds, waiting_for } = found;
    Object.assign(job, { queue_position, queue_seconds, waiting_for });
    const alone = state?.workers && !state.workers.some((worker) => worker.ready);
    say(alone ? "Waiting: no worker is connected. The job starts by itself once there is one; this page may be closed meanwhile." : waiting());
  }
  idle = setTimeout(queue, 3000);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

// It has ended.
function finish(complete) {
  clearTimeout(idle);
  $("running").classList.add("ended");
  $("cancel").hidden = true;
  $("progress").hidden = true;
  $("retry").hidden = !job.failed_items;
  const done = job.progress.completed - job.failed_items;
  const failed = job.failed_items ? `, ${job.failed_items} failed` : "";
  const words = { succeeded: `Done: ${done} explained${failed}.`, cancelled: `Cancelled: ${done} were finished.`, failed: `Failed: ${job.error?.detail ?? "no explanation could be made"}` };
  say(words[job.status]);
  overview.end(job, complete);
  if (complete) drawWhole();
}

function drawWhole() {
  const found = [...overview.results.values()];
  if (found.length) $("whole").replaceChildren(...whole(job, found, guard(again), choose.nameOf));
}

// The same again, changed

let bounded = null; // evidence's bound of a job that is run again; the form has its weight only

function again() {
  const { request } = job;
  const picture = (sha256) => [...overview.results.values()].find((result) => result.image === sha256 && result.artifacts["original.png"])?.artifacts["original.png"];
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

const MOST_KERNELS = 8; // that are named, of many
let cursor = null;

const olderJobs = guard(async () => {
  const page = await ask(`jobs?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  const own = page.jobs.filter((each) => each.request.methods[0] !== "activations");
  $("jobs").append(...own.map(row));
  cursor = page.next_cursor;
  $("older").hidden = !cursor;
  if (!$("jobs").children.length && !cursor) $("jobs").append(make("p", {}, "No jobs yet. What you explain is listed here, and kept for as long as the operator has set."));
  else if (!own.length && cursor) await olderJobs();
});

function row(each) {
  const { kernels, layer, model, images, methods, layers } = each.request;
  const survey = methods[0] === "survey";
  const named = Array.isArray(kernels) && `${kernels.slice(0, MOST_KERNELS).join(", ")}${kernels.length > MOST_KERNELS ? `, … (${kernels.length})` : ""}`;
  const called = survey ? "a survey" : named ? `kernel${kernels.length > 1 ? "s" : ""} ${named}` : `the ${kernels.replace(":", " ")} kernels`;
  const several = !survey && images.length > 1 ? `, ${images.length} images` : "";
  const how = methods.length > 1 ? `, ${methods.length} methods` : "";
  const line = make("p", {},
    make("span", { className: `state ${each.status}` }, each.status), " ",
    survey ? link(`${called} of ${layers.length === 1 ? layer : `${layers.length} layers`} (${model})`, surveyed(each))
      : link(`${called} of ${layer} (${model})${several}${how}`, `#job=${each.id}`, { onclick: () => $("history").close() }), " ",
    make("time", { className: "faint", dateTime: each.created_at }, new Date(each.created_at).toLocaleString()), " ",
    button("Delete", guard(async () => {
      if (!confirm("Delete this job and its pictures for good?")) return;
      await ask(`jobs/${each.id}`, { method: "DELETE" });
      line.remove();
    }), { ariaLabel: `Delete the job on ${called} of ${layer}` }));
  return line;
}

// The page of a survey's last layer, from which the others are found.
const surveyed = ({ id, request }) => `kernels/${encodeURIComponent(request.model)}/${encodeURIComponent(request.layer)}?survey=${id}`;

// What the address says

const asked = () => new URLSearchParams(location.hash.slice(1)).get("job");

const goTo = guard(async () => {
  const id = asked();
  if (!id || id === job?.id) return;
  leave();
  const found = await ask(`jobs/${encodeURIComponent(id)}`);
  if (id !== asked()) return; // somebody was faster
  if (found.request.methods[0] === "survey") return location.assign(surveyed(found));
  if (found.request.methods[0] === "activations") throw new Error("This job ranks the kernels of a layer; it explains none.");
  open(found);
});

function begin() {
  choose.start(guard);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("cancel").addEventListener("click", guard(async () => { await ask(`jobs/${job.id}/cancel`, { method: "POST" }); }));
  $("retry").addEventListener("click", guard(async () => {
    open(await ask(`jobs/${job.id}/retry`, { method: "POST" }));
    $("outcome").focus();
  }));
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
