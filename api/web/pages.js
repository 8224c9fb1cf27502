// What the pages of a kernel and of a layer share: their addresses and data, the survey, and jobs that are followed.

import { $, about, button, link, make, percent, say } from "./dom.js";
import { ended, follow, isVisible } from "./events.js";
import { ask, Refused, signOut } from "./server.js";

const QUEUE_MS = 3000; // between two requests for a job's place in the queue
const RESULTS_MS = 300; // in which several new results cause one request
const OTHERS_MS = 10_000; // between two requests for a survey whose job belongs to another key

// The data of this page, from its own address. It is not cached: the browser would show it instead of the page.
export const load = () => ask(location.pathname + location.search, { headers: { Accept: "application/json" }, cache: "no-store" });

export const inAddress = (count) => location.pathname.split("/").slice(-count).map(decodeURIComponent);

// Of a layer, or of one of its kernels, in the same survey.
export const address = (...names) => `kernels/${names.map(encodeURIComponent).join("/")}${location.search}`;

// A network's name for people, without what explains it, by its name in addresses.
export async function titleOf(network) {
  const known = sessionStorage.getItem(`title of ${network}`);
  if (known) return known;
  const title = (await ask("models")).find((model) => model.name === network)?.title.split(":")[0] ?? network;
  sessionStorage.setItem(`title of ${network}`, title);
  return title;
}

// Numbers for people

export const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
export const count = (value) => value.toLocaleString("en");
export const share = (value) => (value > 0 && value < 0.001 ? "< 0.1 %" : percent(value));
const day = (time) => new Date(time).toLocaleDateString(undefined, { dateStyle: "medium" });

// Errors as sentences

export const guard = (action) => async (...given) => {
  notice("");
  try {
    await action(...given);
  } catch (error) {
    notice(error.message);
  }
};

export function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

// Shows the page, or why there is nothing to show.
export async function open(show) {
  $("sign-out").hidden = !sessionStorage.getItem("signed-in");
  $("sign-out").addEventListener("click", guard(signOut));
  try {
    show(await load());
    $("missing").hidden = true;
  } catch (error) {
    missing(error);
  }
}

function missing(error) {
  const { title, detail } = error.problem ?? { title: "This page cannot be shown now", detail: error.message };
  const retry = error instanceof Refused ? "" : button("Try again", () => location.reload());
  $("missing").hidden = false;
  $("missing").replaceChildren(make("h2", {}, title), make("p", { className: "words" }, ...withCode(detail ?? "")),
    make("p", {}, link("Explain a kernel in an image of your own", "."), " "), retry);
}

// Text with code between backticks.
const withCode = (text) => text.split("`").map((part, at) => (at % 2 ? make("code", {}, part) : part));

// The survey

export function surveyed({ survey, surveys }) {
  const others = surveys.some((one) => one.id !== survey.id);
  const said = survey.status === "succeeded"
    ? `Survey of ${day(survey.created_at)}: ${count(survey.images)} images of “${survey.dataset_name}”.`
    : `Images of “${survey.dataset_name}”.`;
  if ($("survey").textContent.startsWith(said)) return; // the person may be choosing another
  $("survey").replaceChildren(make("p", {}, said), others ? chooser(survey, surveys) : "");
}

function chooser(survey, surveys) {
  const named = (one) => `${one.dataset_name}: ${count(one.images)} images, ${day(one.created_at)}${one.status === "succeeded" ? "" : `, ${one.status}`}`;
  const options = surveys.map((one) => new Option(named(one), one.id, false, one.id === survey.id));
  return make("form", { className: "tools" },
    make("label", {}, "Survey", make("select", { name: "survey" }, ...options)), make("button", {}, "Show"));
}

// Shows the progress of an unfinished survey, and the page again once it has ended.
export async function unfinished(survey, show) {
  const at = $("survey-state");
  at.hidden = survey.status === "succeeded";
  if (at.hidden) return;
  const line = make("p", { role: "status" });
  const bar = make("progress", { max: 1, value: survey.surveyed / survey.images || 0, ariaLabel: "How far the survey is" });
  at.replaceChildren(line, bar);
  const refresh = guard(async () => show(await load()));
  if (ended(survey.status)) {
    bar.hidden = true;
    line.textContent = `The survey was ${survey.status === "failed" ? "stopped by an error" : "cancelled"} after ${count(survey.surveyed)} of ${count(survey.images)} images.`;
    if (survey.mine) at.append(button("Continue it", guard(async () => {
      await ask(`jobs/${survey.id}/retry`, { method: "POST" });
      await refresh();
    })));
    return;
  }
  line.textContent = "The survey is not finished.";
  try {
    await watch([survey.id], {
      step(state) {
        bar.value = state.fraction;
        say(line, state.waiting ?? `The survey is not finished: ${count(Math.round(state.fraction * survey.images))} of ${count(survey.images)} images done${left(state)}.`);
      },
    });
    await refresh();
  } catch { // the job belongs to another key
    setTimeout(refresh, OTHERS_MS);
  }
}

// Jobs

export const left = ({ seconds_left: seconds }) => (typeof seconds === "number" ? `, ${about(seconds)} left` : "");

// Follows several jobs as one: `step` is called with their progress, `results` when there are new results. Resolves to the
// jobs once all have ended; rejects where one is gone.
export function watch(ids, { step, results = () => {} }) {
  const states = ids.map(() => ({ status: "queued", completed: 0, total: null, fraction: 0, seconds_left: null, place: "Waiting …" }));
  let pending = null;
  const report = (lost = false) => step(joined(states, lost));
  const came = () => { pending ??= setTimeout(() => { pending = null; results(); }, RESULTS_MS); };
  const watched = ids.map((id, at) => one(id, states[at], report, came));
  return Promise.all(watched).finally(() => clearTimeout(pending));
}

function one(id, state, report, came) {
  return new Promise((resolve, reject) => {
    let idle = null;
    const over = (end, value) => {
      clearTimeout(idle);
      stop();
      end(value);
    };
    const queue = async () => {
      if (state.status !== "queued") return;
      const place = isVisible() ? await placeOf(id).catch(() => null) : null;
      if (place && state.status === "queued") {
        state.place = place;
        report();
      }
      idle = setTimeout(queue, QUEUE_MS);
    };
    const stop = follow(id, {
      async status({ status }) {
        state.status = status;
        if (!ended(status)) return report();
        const job = await ask(`jobs/${id}`).catch((error) => over(reject, error));
        if (!job || !ended(job.status)) return; // the end of an earlier run
        Object.assign(state, { status: job.status, ...job.progress, fraction: 1, seconds_left: null });
        report();
        over(resolve, job);
      },
      progress(made) {
        Object.assign(state, made, { status: "running", fraction: Math.max(state.fraction, made.fraction ?? 0) });
        report();
      },
      result() { came(); },
      lost() { report(true); },
      found() { report(); },
      gone(error) { over(reject, error); },
    });
    idle = setTimeout(queue, QUEUE_MS / 4);
  });
}

function joined(states, lost) {
  const sum = (name) => states.reduce((total, state) => total + (state[name] ?? 0), 0);
  const queued = states.filter((state) => state.status === "queued");
  const waits = queued.length && states.every((state) => state.status !== "running");
  const seconds = states.map((state) => state.seconds_left).filter((value) => typeof value === "number");
  return {
    waiting: lost ? "The connection was lost; trying again …" : waits ? queued[0].place : null,
    completed: sum("completed"), total: sum("total"), fraction: sum("fraction") / states.length,
    seconds_left: seconds.length ? Math.max(...seconds) : null,
  };
}

async function placeOf(id) {
  const [job, state] = await Promise.all([ask(`jobs/${id}`), fetch("readyz").then((answer) => answer.json()).catch(() => null)]);
  const { queue_position: position, queue_seconds: seconds, waiting_for: awaited } = job;
  if (awaited) return `Waiting for ${awaited}.`;
  if (state?.workers && !state.workers.some((worker) => worker.ready)) return "Waiting: no worker is connected. The job starts once there is one.";
  return `Waiting${position ? `, place ${position} in the queue` : ""}${typeof seconds === "number" ? `, ${about(seconds)}` : ""} …`;
}
