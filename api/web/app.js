// The page: submit a form, poll the job, show each result's panel. Nothing here but the public HTTP API.

const $ = (id) => document.getElementById(id);
let models = [];

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function ask(url, options) {
  const answer = await fetch(url, options);
  if (answer.status === 401) {
    await signIn();
    return ask(url, options);
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.title}: ${body.detail}`);
  return body;
}

// A server with keys: ask for one, and have it answer with a cookie that stands for it.
async function signIn() {
  const dialog = $("sign-in");
  for (let problem = ""; ; ) {
    $("sign-in-problem").textContent = problem;
    dialog.showModal();
    await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
    const answer = await fetch("/session", { method: "POST", headers: { Authorization: `Bearer ${$("key").value.trim()}` } });
    $("key").value = "";
    if (answer.ok) return;
    problem = (await answer.json()).detail;
  }
}

function showModel() {
  const model = models.find((each) => each.name === $("model").value);
  $("layer").replaceChildren(...model.layers.map((layer) => {
    const option = new Option(`${layer.name} (${layer.kernels} kernels)`, layer.name);
    option.disabled = layer.available === false;
    return option;
  }));
  const usable = model.layers.filter((layer) => layer.available !== false);
  if (usable.length) $("layer").value = usable[usable.length - 1].name;
  const state = { true: "runs", false: "cannot run", null: "waits" }[String(model.available)];
  $("weights").textContent = `${model.title} ${state}: ${model.reason}`;
}

async function loadModels() {
  models = await ask("/models");
  const chosen = models.find((each) => each.name === "vgg16" && each.available)
    ?? models.find((each) => each.available) ?? models[0];
  $("model").replaceChildren(...models.map((each) => new Option(each.title, each.name)));
  $("model").value = chosen.name;
  showModel();
}

function showResult(job, result) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  if (result.status === "succeeded") {
    const image = new Image();
    image.src = result.artifacts["panel.png"];
    image.alt = `kernel ${result.kernel} of ${job.request.layer}: the original, X̂ and the feature maps`;
    const link = document.createElement("a");
    link.href = result.artifacts["optimized.png"];
    link.textContent = "X̂ alone (PNG)";
    caption.append(link, ` — ${job.request.model}, weights ${result.weights.source}`);
    figure.append(image, caption);
  } else {
    caption.textContent = `kernel ${result.kernel ?? "?"}: ${result.error?.detail ?? result.status}`;
    figure.append(caption);
  }
  $("results").append(figure);
}

async function follow(job) {
  $("results").replaceChildren();
  $("progress").hidden = false;
  let shown = 0;
  for (;;) {
    for (const result of job.results.slice(shown)) showResult(job, result);
    shown = job.results.length;
    const { completed, total, iteration, budget } = job.progress;
    const running = budget ? iteration / budget : 0;
    $("progress").value = total ? (completed + (total - completed) * running) / total : 0;
    const place = job.queue_position ? `, place ${job.queue_position}` : "";
    say(`${job.status}${place}: ${completed} of ${total ?? "?"} done`);
    if (!["queued", "running"].includes(job.status)) break;
    await new Promise((wake) => setTimeout(wake, 500));
    job = await ask(`/jobs/${job.id}`);
  }
  $("progress").hidden = true;
  if (job.status === "failed") say(job.error?.detail ?? "the job failed", true);
}

$("model").addEventListener("change", showModel);
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say("sending the image …");
  try {
    await follow(await ask("/explain", { method: "POST", body: new FormData($("form")) }));
  } catch (error) {
    say(error.message, true);
  }
});
loadModels().catch((error) => say(error.message, true));
