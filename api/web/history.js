// The dialog "Your jobs", newest first.

import { $, button, link, make } from "./dom.js";
import { ask } from "./server.js";
import { address } from "./surveys.js";

const MOST_KERNELS = 8; // that are named, of many

let cursor = null;

async function older() {
  const page = await ask(`jobs?limit=50${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  const own = page.jobs.filter((each) => each.request.methods[0] !== "activations");
  $("jobs").append(...own.map(row));
  cursor = page.next_cursor;
  $("older").hidden = !cursor;
  if (!$("jobs").children.length && !cursor) $("jobs").append(make("p", {}, "No jobs yet. Jobs are listed here until they expire."));
  else if (!own.length && cursor) await older();
}

function describe({ kernels, methods, layer, model, images, layers }) {
  if (methods[0] === "survey") return `a survey of ${layers.length === 1 ? layer : `${layers.length} layers`} (${model})`;
  const named = Array.isArray(kernels) && `${kernels.slice(0, MOST_KERNELS).join(", ")}${kernels.length > MOST_KERNELS ? `, … (${kernels.length})` : ""}`;
  const which = named ? `kernel${kernels.length > 1 ? "s" : ""} ${named}` : `the ${kernels.replace(":", " ")} kernels`;
  return `${which} of ${layer} (${model})${images.length > 1 ? `, ${images.length} images` : ""}${methods.length > 1 ? `, ${methods.length} methods` : ""}`;
}

function row(job) {
  const { request } = job;
  const survey = request.methods[0] === "survey";
  const words = describe(request);
  const line = make("p", {},
    make("span", { className: `state ${job.status}` }, job.status), " ",
    survey ? link(words, address(request.model, request.layer, job.id)) : link(words, `#job=${job.id}`, { onclick: () => $("history").close() }), " ",
    make("time", { className: "faint", dateTime: job.created_at }, new Date(job.created_at).toLocaleString()), " ",
    button("Delete", guarded(async () => {
      if (!confirm("Delete this job and its pictures? This cannot be undone.")) return;
      await ask(`jobs/${job.id}`, { method: "DELETE" });
      line.remove();
    }), { ariaLabel: `Delete: ${words}` }));
  return line;
}

let guarded = (action) => action;

export function start(guard) {
  guarded = guard;
  $("open-history").addEventListener("click", guard(async () => {
    cursor = null;
    $("jobs").replaceChildren();
    $("history").showModal();
    await older();
  }));
  $("older").addEventListener("click", guard(older));
  $("close-history").addEventListener("click", () => $("history").close());
}
