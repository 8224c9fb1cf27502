// The page: what is chosen becomes a job, which is followed and shown. It uses the public HTTP API only.

import { $, about, reveal, say } from "./dom.js";
import * as drops from "./drops.js";
import * as history from "./history.js";
import * as images from "./images.js";
import * as job from "./job.js";
import * as kernels from "./kernels.js";
import * as layers from "./layers.js";
import { results } from "./overview.js";
import * as pace from "./pace.js";
import * as request from "./request.js";
import { ask, isTemporary, signOut } from "./server.js";
import * as surveys from "./surveys.js";

const RETRY_MS = 3000;
const EXAMPLE = "shapes.png";

// Makes of a function one whose errors are shown.
const guard = (action) => async (...given) => {
  notice("");
  try {
    return await action(...given);
  } catch (error) {
    return notice(error.message);
  }
};

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

// A new job

const explain = guard(async () => {
  if (!images.all().length) {
    $("files").focus();
    throw new Error("Choose an image first, or one of the samples.");
  }
  const body = read();
  await busy(() => submit(body));
  show();
});

// The request; where a box cannot be read, the focus moves there.
function read() {
  try {
    return request.read();
  } catch (error) {
    reveal(error);
    throw error;
  }
}

// Nothing else is submitted during an action.
async function busy(action) {
  const buttons = [$("run"), $("example")];
  for (const button of buttons) button.disabled = true;
  try {
    await action();
  } finally {
    for (const button of buttons) button.disabled = false;
    plan();
  }
}

async function submit(body) {
  const made = await images.explained(body, (name) => say($("plan"), `Sending ${name} …`));
  window.history.pushState(null, "", `#job=${made.id}`);
  job.open(made);
}

// The result is the first thing on the page.
function show() {
  $("outcome").focus({ preventScroll: true });
  $("outcome").scrollIntoView({ block: "start" });
}

// One click, without an image at hand.
const example = guard(async () => {
  if (!layers.layer()) throw new Error("No network can be explained here: the server has no weights.");
  await busy(async () => {
    await images.addSample(EXAMPLE);
    $("effort").value = "quick";
    await submit(read());
  });
  show();
});

// What “Explain” would do, in a sentence.
function plan() {
  say($("plan"), planned());
  $("welcome").hidden = Boolean(images.all().length || job.current() || linked());
}

function planned() {
  const count = images.all().length;
  if (!count) return "";
  try {
    const body = request.read();
    const { all, kernels: some, each } = request.counted(body, count);
    const seconds = pace.estimate(body, count);
    const factors = [[count, "image"], [some, "kernel"], [each, "variant"]].map(([number, word]) => `${number} ${word}${number === 1 ? "" : "s"}`);
    const time = seconds === null ? "no estimate of the time yet" : about(seconds);
    return `${all} explanation${all === 1 ? "" : "s"} (${factors.join(" × ")}), ${time}.`;
  } catch {
    return ""; // said when “Explain” is pressed
  }
}

// The options of the job that is shown, in the form, to be changed.
function refill(old) {
  if (!layers.model()) throw new Error("The networks are not loaded yet; try again in a moment.");
  const picture = (sha256) => [...results.values()].find((result) => result.image === sha256 && result.artifacts["original.png"])?.artifacts["original.png"];
  if (!old.images.every(picture)) throw new Error("An image of this job was never explained, so it cannot be shown. Choose the images again.");
  request.fill(old);
  $("options").open = true;
  kernels.want(old);
  images.replace(old, picture);
  $("model").value = old.model;
  layers.drawLayers(old.layer);
  $("form").scrollIntoView({ block: "start" });
  $("run").focus({ preventScroll: true });
}

// The address names the job

const linked = () => new URLSearchParams(location.hash.slice(1)).get("job");

let returning = null; // the timer of the next attempt to open it

const goTo = guard(async () => {
  clearTimeout(returning);
  const id = linked();
  if (!id || id === job.current()?.id) return;
  job.leave();
  const found = await ask(`jobs/${encodeURIComponent(id)}`).catch((error) => {
    clearTimeout(returning);
    if (isTemporary(error)) returning = setTimeout(goTo, RETRY_MS);
    throw error;
  });
  if (id !== linked() || id === job.current()?.id) return; // another one was opened meanwhile, or this one
  if (found.request.methods[0] === "survey") return void location.assign(surveys.address(found.request.model, found.request.layer, found.id));
  if (found.request.methods[0] === "activations") throw new Error("This job ranks the kernels of a layer; it explains none.");
  job.open(found);
  plan();
});

// Everything that needs the server, again until it answers.
async function load() {
  try {
    await layers.loadModels();
  } catch (error) {
    await goTo(); // a job is shown without them
    notice(error.message);
    if (isTemporary(error)) setTimeout(load, RETRY_MS);
    return;
  }
  notice("");
  await goTo();
  surveys.show().catch(() => {}); // the links are a convenience, as is the estimate
  pace.learn().then(plan, () => {});
}

function begin() {
  images.start(guard, kernels.rank);
  layers.start(guard, kernels.rank);
  kernels.start(plan);
  drops.start(guard);
  history.start(guard);
  job.start(guard, refill, notice);
  request.enable();
  $("form").addEventListener("submit", (event) => { event.preventDefault(); explain(); });
  $("form").addEventListener("input", () => { request.enable(); plan(); });
  $("example").addEventListener("click", example);
  $("again").addEventListener("click", () => { $("form").scrollIntoView({ block: "start" }); $("files").focus({ preventScroll: true }); });
  $("sign-out").hidden = !sessionStorage.getItem("signed-in");
  $("sign-out").addEventListener("click", guard(signOut));
  addEventListener("hashchange", goTo);
  load();
}

begin();
