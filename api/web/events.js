// The events of a job. A browser opens at most six connections to a server over HTTP/1.1, for all of its tabs together, and
// an event stream occupies one. So a hidden tab has no stream, and of the visible ones only some have: the others poll.

import { ask, Refused } from "./server.js";

const STREAMS = 3; // in all tabs of a browser
const RETRY_MS = 1500;
const POLL_MS = 2000;
const SILENT_MS = 45_000; // the server sends a comment each 15 s; after three of them the connection is regarded as lost

export const ended = (status) => !["queued", "running"].includes(status);
export const isVisible = () => document.visibilityState === "visible";

// Calls on.status, on.progress and on.result until the job has ended; on.lost and on.found where the connection is lost and
// is there again; on.gone where the job is deleted or has expired. Returns a function that stops this.
export function follow(id, on) {
  const stopped = new AbortController();
  run({ id, on, stopped: stopped.signal, last: null, over: false, results: new Set() });
  return () => stopped.abort();
}

async function run(job) {
  while (!job.stopped.aborted) {
    try {
      await visible(job.stopped);
      if (await inTurn((stream) => (stream ? streamed(job) : polled(job)))) return;
    } catch (error) {
      if (job.stopped.aborted) return;
      if ([404, 410].includes(error.problem?.status)) return void job.on.gone(error);
      job.on.lost();
      await pause(RETRY_MS, job.stopped);
    }
  }
}

// Runs an action with whether it may have a stream. Locks are shared by all tabs; a page without TLS has none.
function inTurn(action, place = 0) {
  if (!navigator.locks) return action(true);
  if (place === STREAMS) return action(false);
  return navigator.locks.request(`kernelscope stream ${place}`, { ifAvailable: true }, (lock) => (lock ? action(true) : inTurn(action, place + 1)));
}

// Until the stream or the visibility of this tab ends; whether the job has ended.
async function streamed(job) {
  const closing = new AbortController();
  const close = () => closing.abort();
  const hide = () => isVisible() || close();
  document.addEventListener("visibilitychange", hide);
  job.stopped.addEventListener("abort", close);
  if (job.stopped.aborted) close();
  hide();
  try {
    const refused = await read(job, closing);
    if (refused) await pause(RETRY_MS, job.stopped);
    else if (!job.over) throw new Error("The stream ended before the job.");
    return job.over;
  } catch (error) {
    if (isVisible() || job.stopped.aborted) throw error;
    return false;
  } finally {
    document.removeEventListener("visibilitychange", hide);
    job.stopped.removeEventListener("abort", close);
    close();
  }
}

// By fetch and not by EventSource, which neither resumes in another connection nor says why it was refused. Returns whether
// the server refused the stream although the job is there.
async function read(job, closing) {
  let silence = setTimeout(() => closing.abort(), SILENT_MS);
  const headers = { Accept: "text/event-stream", ...(job.last ? { "Last-Event-ID": job.last } : {}) };
  try {
    const response = await fetch(`jobs/${job.id}/events?previews=true`, { headers, cache: "no-store", signal: closing.signal });
    if (!response.ok || response.status === 204) return await checked(job);
    job.on.found?.();
    for await (const event of eventsIn(response.body)) {
      clearTimeout(silence);
      silence = setTimeout(() => closing.abort(), SILENT_MS);
      if (event.kind === "problem") return await checked(job);
      if (event.data) passOn(job, event);
    }
    return false;
  } finally {
    clearTimeout(silence);
  }
}

function passOn(job, { kind, data, id }) {
  const content = JSON.parse(data);
  if (id) job.last = id;
  if (kind === "gone") throw new Refused(content);
  if (kind === "status") job.over = ended(content.status); // a job that is run again has ended before
  if (kind === "result") job.results.add(content.index);
  job.on[kind]?.(content);
}

async function* eventsIn(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    yield* blocks.map(parsed);
  }
}

function parsed(block) {
  const fields = block.split(/\r?\n/).map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
  const all = (name) => fields.filter((field) => field[1] === name).map((field) => field[2]).join("\n");
  return { kind: all("event") || "message", data: all("data"), id: all("id") };
}

// The job itself: it says why there is no stream, and asks for a key where one is missing.
async function checked(job) {
  const { status } = await ask(`jobs/${job.id}`);
  if (job.stopped.aborted) return true;
  job.over = ended(status);
  if (job.over) job.on.status({ status });
  return !job.over;
}

async function polled(job) {
  const { status, progress, results } = await ask(`jobs/${job.id}`);
  if (job.stopped.aborted) return true;
  job.on.found?.();
  job.on.status({ status });
  if (status === "running") job.on.progress(progress);
  for (const result of results ?? []) {
    if (job.results.has(result.index)) continue;
    job.results.add(result.index);
    job.on.result(result);
  }
  if (!ended(status)) await pause(POLL_MS, job.stopped);
  return ended(status);
}

// Resolves once the tab is visible.
function visible(stopped) {
  return until(stopped, (done) => {
    const check = () => isVisible() && done();
    document.addEventListener("visibilitychange", check);
    check();
    return () => document.removeEventListener("visibilitychange", check);
  });
}

const pause = (milliseconds, stopped) => until(stopped, (done) => {
  const timer = setTimeout(done, milliseconds);
  return () => clearTimeout(timer);
});

// Resolves when `begin` calls its argument or the job is followed no more; what `begin` returns cleans up.
async function until(stopped, begin) {
  let clean;
  await new Promise((resolve) => {
    const done = () => {
      stopped.removeEventListener("abort", done);
      resolve();
    };
    stopped.addEventListener("abort", done);
    if (stopped.aborted) done();
    clean = begin(done);
  });
  clean();
}
