// How long explanations take, by the jobs that this server has finished for the caller.

import { counted } from "./request.js";
import { ask } from "./server.js";

const EVALUATIONS = { quick: 100, standard: 400, thorough: 2000 }; // roughly, of one X̂
const SIMILAR = 5; // jobs that are compared with

let jobs = [];

export async function learn() {
  const page = await ask("jobs?limit=50&status=succeeded");
  jobs = page.jobs.map(paceOf).filter(Boolean);
}

const work = (request) => request.iterations ?? EVALUATIONS[request.effort ?? "standard"];

// Seconds of one evaluation. A job on which nothing was optimised, or whose results were there before, says nothing.
function paceOf({ request, started_at: started, finished_at: finished }) {
  if (["activations", "survey"].includes(request.methods[0])) return null;
  const { optimized } = counted(request, request.images.length);
  const seconds = (new Date(finished) - new Date(started)) / 1000;
  return optimized && seconds > 0 ? { request, seconds: seconds / (optimized * work(request)) } : null;
}

// Seconds that a request will take; null where nothing like it was done. Of similar jobs the slowest counts, as others may
// have reused results.
export function estimate(request, images) {
  const { optimized } = counted(request, images);
  if (!optimized) return null;
  const likeness = ({ request: other }) => (other.layer === request.layer) + (other.effort === request.effort) + (other.solver === request.solver);
  const similar = jobs.filter((job) => job.request.model === request.model);
  const best = Math.max(...similar.map(likeness));
  const alike = similar.filter((job) => likeness(job) === best).slice(0, SIMILAR);
  return alike.length ? Math.max(...alike.map((job) => job.seconds)) * optimized * work(request) : null;
}
