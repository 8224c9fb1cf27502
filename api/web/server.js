// The HTTP API: answers as objects, refusals as sentences, a key where one is needed, and a job's events.

import { $, make } from "./dom.js";

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail ? `${problem.title}: ${problem.detail}` : problem.title);
    this.problem = problem;
  }
}

export class Unreachable extends Error {}

let signingIn = null;

export async function ask(path, options = {}) {
  const answer = await fetch(path, options).catch(() => {
    throw new Unreachable("The server does not answer. If it is being restarted, try again in a moment.");
  });
  if (answer.status === 401) {
    await signIn();
    return ask(path, options);
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({ title: `The server answered ${answer.status}`, detail: answer.statusText }));
  if (!answer.ok) throw new Refused(body);
  return body;
}

export const post = (path, body, headers = {}) =>
  ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } });

// A request that makes one job however often it has to be sent.
export async function submit(path, body, headers = {}) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let patience = 5; ; patience -= 1) {
    try {
      return await post(path, body, { "Idempotency-Key": key, ...headers });
    } catch (error) {
      const passing = error instanceof Unreachable || error.problem?.status === 503;
      if (!passing || !patience) throw error;
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  }
}

// A server with keys: ask for one, and have it answered with a cookie that stands for it.
function signIn() {
  signingIn ??= keyAccepted().finally(() => { signingIn = null; });
  return signingIn;
}

// Every page has this dialog once it is needed.
function signInDialog() {
  const dialog = make("dialog", { id: "sign-in", "aria-labelledby": "sign-in-title" }, make("form", { method: "dialog" },
    make("h2", { id: "sign-in-title" }, "This server needs an API key"),
    make("p", {}, "Its operator makes one: ", make("code", {}, "kernelscope keys add NAME")),
    make("label", {}, "Key ", make("input", { type: "password", id: "key", autocomplete: "current-password", required: true })),
    make("p", { id: "sign-in-problem", className: "error", role: "alert" }),
    make("button", { className: "main" }, "Sign in")));
  document.body.append(dialog);
  return dialog;
}

async function keyAccepted() {
  const dialog = $("sign-in") ?? signInDialog();
  for (let problem = ""; ; ) {
    $("sign-in-problem").textContent = problem;
    dialog.showModal();
    await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
    const key = $("key").value.trim();
    $("key").value = "";
    if (!/^[!-~]+$/.test(key)) {
      problem = "A key looks like ks_ followed by letters and digits.";
      continue;
    }
    const answer = await fetch("session", { method: "POST", headers: { Authorization: `Bearer ${key}` } }).catch(() => null);
    if (answer?.ok) {
      $("sign-out").hidden = false;
      sessionStorage.setItem("signed-in", "yes");
      return;
    }
    problem = answer ? (await answer.json()).detail : "The server does not answer; try again in a moment.";
  }
}

export async function signOut() {
  await ask("session", { method: "DELETE" });
  sessionStorage.removeItem("signed-in");
  location.assign(location.pathname);
}

export const ended = (status) => !["queued", "running"].includes(status);

// Tells of a job until the server has no more to tell: on.status, on.progress, on.result, on.lost, on.gone. Returns what stops it.
// EventSource comes back by itself after a broken connection, but not after a refusal, whose reason it does not tell:
// then we ask for the job, which asks for a key where one is needed, and come back unless it is gone.
export function follow(id, on) {
  let source;
  let stopped = false;
  let over = false; // the last that was told is an end; a job that was run again has had one before
  const stop = () => {
    stopped = true;
    source.close();
  };
  const gone = (error) => {
    stop();
    on.gone(error);
  };
  const later = () => setTimeout(again, 1500);
  const again = async () => {
    if (stopped) return;
    try {
      await ask(`jobs/${id}`);
    } catch (error) {
      if ([404, 410].includes(error.problem?.status)) gone(error);
      else later();
      return;
    }
    open();
  };
  const open = () => {
    if (stopped) return;
    source = new EventSource(`jobs/${id}/events?previews=true`);
    source.addEventListener("status", (event) => {
      const { status } = JSON.parse(event.data);
      over = ended(status);
      on.status(status);
    });
    source.addEventListener("progress", (event) => on.progress(JSON.parse(event.data)));
    source.addEventListener("result", (event) => on.result(JSON.parse(event.data)));
    source.addEventListener("gone", (event) => gone(new Refused(JSON.parse(event.data))));
    source.addEventListener("problem", () => {
      source.close();
      on.lost();
      later();
    });
    source.addEventListener("error", () => {
      if (over) stop();
      if (stopped) return;
      on.lost();
      if (source.readyState === EventSource.CLOSED) later();
    });
  };
  open();
  return stop;
}
