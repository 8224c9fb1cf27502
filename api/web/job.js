// One job: opened, followed until it has ended, and its results shown.

import { $, about, say } from "./dom.js";
import { ended, follow, isVisible } from "./events.js";
import { nameOf } from "./images.js";
import * as overview from "./overview.js";
import { whole } from "./result.js";
import { ask, isTemporary } from "./server.js";

const QUEUE_MS = 3000; // between two requests for the place in the queue
const RETRY_MS = 1500;

let job = null; // that is shown
let stop = () => {};
let waiting = null; // the timer of the next request for the place in the queue
let pace = null; // of a running job: how far it was, and when
let notice = () => {};
let again = () => {};

export const current = () => job;

// Nothing of the job stays while another one is loaded.
export function leave() {
  stop();
  clearTimeout(waiting);
  job = null;
  $("outcome").hidden = true;
}

export function open(found) {
  leave();
  job = found;
  pace = null;
  $("outcome").hidden = false;
  $("outcome-title").textContent = `Kernels of ${job.request.layer} (${job.request.model})`;
  $("whole").replaceChildren();
  overview.show(job);
  if (!ended(job.status)) {
    progress();
    stop = follow(job.id, { status: changed, progress: stepped, result: came, lost, found: progress, gone });
    return;
  }
  finish(job.results !== null);
  if (job.results === null) readResults().catch((error) => { if (job === found) notice(error.message); });
}

// A request at the end of a job, again while the server is away and the job is shown.
async function patiently(path) {
  for (const shown = job; ;) {
    try {
      return await ask(path);
    } catch (error) {
      if (job !== shown || !isTemporary(error)) throw error;
      lost();
      await new Promise((wake) => setTimeout(wake, RETRY_MS));
      if (job !== shown) throw error;
    }
  }
}

// The results of a big job, page by page; those of a job that is followed come as events.
async function readResults() {
  const shown = job;
  for (let cursor = ""; cursor !== null;) {
    const page = await patiently(`jobs/${shown.id}/results?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    if (job !== shown) return;
    page.results.forEach(overview.take);
    overview.settle();
    if (!cursor) drawWhole();
    cursor = page.next_cursor;
  }
  finish(true);
}

async function changed({ status }) {
  let shown = job;
  if (!ended(status)) {
    if (status === job.status) return;
    job.status = status;
    progress();
    return;
  }
  try {
    const found = await patiently(`jobs/${shown.id}`);
    if (job !== shown || !ended(found.status)) return; // the end of an earlier run
    shown = job = found;
    const missing = job.results === null && overview.results.size < job.progress.completed; // it was polled
    finish(!missing);
    if (missing) await readResults();
  } catch (error) {
    if (job === shown) notice(error.message);
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
  clearTimeout(waiting);
  say($("status"), "The connection was lost; trying again …");
}

function gone(error) {
  leave();
  notice(error.message);
}

// How far it is

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
  say($("status"), running ? `Running: ${completed} of ${total ?? "?"} done${loss ? `, loss ${loss.toFixed(3)}` : ""}${timeLeft()}` : place());
  clearTimeout(waiting);
  if (!running) waiting = setTimeout(queue, 700);
}

// By the pace that was seen here, or as the server estimates.
function timeLeft() {
  const { fraction, seconds_left: estimated } = job.progress;
  const gained = fraction - pace.fraction;
  const seconds = gained >= 0.02 ? ((Date.now() - pace.at) / 1000) * (1 - fraction) / gained : estimated;
  return typeof seconds === "number" ? `, ${about(seconds)} left` : "";
}

function place() {
  const { queue_position: position, queue_seconds: seconds, waiting_for: missing } = job;
  if (missing) return `Waiting for ${missing}.`;
  const number = position ? `, place ${position} in the queue` : "";
  return `Waiting${number}${typeof seconds === "number" ? `, ${about(seconds)}` : ""} …`;
}

async function queue() {
  const shown = job;
  if (isVisible()) {
    const [found, state] = await Promise.all([ask(`jobs/${shown.id}`).catch(() => null),
      fetch("readyz").then((answer) => answer.json()).catch(() => null)]);
    if (job !== shown || job.status !== "queued") return;
    if (found?.status === "queued") {
      const { queue_position, queue_seconds, waiting_for } = found;
      Object.assign(job, { queue_position, queue_seconds, waiting_for });
      const alone = state?.workers && !state.workers.some((worker) => worker.ready);
      say($("status"), alone ? "Waiting: no worker is connected. The job starts once there is one; this page may be closed." : place());
    }
  }
  waiting = setTimeout(queue, QUEUE_MS);
}

function finish(complete) {
  clearTimeout(waiting);
  $("running").classList.add("ended");
  $("cancel").hidden = true;
  $("progress").hidden = true;
  $("retry").hidden = !job.failed_items;
  const done = job.progress.completed - job.failed_items;
  const failed = job.failed_items ? `, ${job.failed_items} failed` : "";
  const words = { succeeded: `Done: ${done} explained${failed}.`, cancelled: `Cancelled: ${done} were finished.`, failed: `Failed: ${job.error?.detail ?? "no explanation could be made"}` };
  say($("status"), words[job.status]);
  overview.end(job, complete);
  if (complete) drawWhole();
}

function drawWhole() {
  const found = [...overview.results.values()];
  if (found.length) $("whole").replaceChildren(...whole(job, found, again, nameOf));
}

// A picture that cannot be loaded: its job may be gone, or the session; a key is then asked for.
let checking = null;

async function missing({ target }) {
  const shown = job;
  if (!(target instanceof HTMLImageElement) || !shown || target.dataset.retried || !$("outcome").contains(target)) return;
  target.dataset.retried = "yes";
  if (target.getAttribute("src").includes("/previews/")) return; // replaced by the result
  checking ??= ask(`jobs/${shown.id}`).finally(() => { checking = null; });
  try {
    await checking;
    target.src = `${target.src}`;
  } catch (error) {
    if (job === shown && [404, 410].includes(error.problem?.status)) gone(error);
  }
}

// The failed explanations once more; until the server answers, nothing says that the job has ended.
async function retry() {
  const shown = job;
  const summary = $("status").textContent;
  const asking = (yes) => {
    $("running").classList.toggle("ended", !yes);
    $("retry").hidden = yes;
    say($("status"), yes ? "Starting again what failed …" : summary);
  };
  asking(true);
  try {
    const found = await ask(`jobs/${shown.id}/retry`, { method: "POST" });
    if (job !== shown) return;
    open(found);
    $("outcome").focus();
  } catch (error) {
    if (job === shown) asking(false);
    throw error;
  }
}

// `change` is called by "Change and run again", `show` with a message.
export function start(guard, change, show) {
  notice = show;
  again = guard(() => change(job.request));
  $("cancel").addEventListener("click", guard(async () => { await ask(`jobs/${job.id}/cancel`, { method: "POST" }); }));
  $("retry").addEventListener("click", guard(retry));
  addEventListener("error", missing, true);
}
