// The HTTP API: responses as objects, errors as sentences, and a dialog that asks for a key where one is needed.

import { $, make } from "./dom.js";

export class Refused extends Error {
  constructor(problem, status = problem.status) { // that of HTTP: a proxy's answer is no problem of the API
    super(problem.detail ? `${problem.title}: ${problem.detail}` : problem.title);
    this.problem = problem;
    this.status = status;
  }
}

export class Unreachable extends Error {}

// Whether the same request may succeed in a moment.
export const isTemporary = (error) => error instanceof Unreachable || [502, 503, 504].includes(error.status);

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
  if (!answer.ok) throw new Refused(body, answer.status);
  return body;
}

function post(path, body, headers) {
  if (body instanceof FormData) return ask(path, { method: "POST", body, headers });
  return ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } });
}

// Creates one job, however often the request has to be sent. The body is an object or a form.
export async function submit(path, body, headers = {}) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let retries = 5; ; retries -= 1) {
    try {
      return await post(path, body, { "Idempotency-Key": key, ...headers });
    } catch (error) {
      if (!isTemporary(error) || !retries) throw error;
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  }
}

// Asks for a key and exchanges it for a session cookie.
function signIn() {
  signingIn ??= keyAccepted().finally(() => { signingIn = null; });
  return signingIn;
}

// Added to a page when it is first needed.
function signInDialog() {
  const dialog = make("dialog", { id: "sign-in", "aria-labelledby": "sign-in-title" }, make("form", { method: "dialog" },
    make("h2", { id: "sign-in-title" }, "This server needs an API key"),
    make("p", {}, "Ask the server's operator for one; the command that creates it is ", make("code", {}, "kernelscope keys add NAME"), "."),
    make("label", {}, "Key ", make("input", { type: "password", id: "key", autocomplete: "current-password", required: true })),
    make("p", { id: "sign-in-problem", className: "error", role: "alert" }),
    make("button", { className: "main" }, "Sign in")));
  document.body.append(dialog);
  return dialog;
}

async function keyAccepted() {
  const dialog = $("sign-in") ?? signInDialog();
  let problem = sessionStorage.getItem("signed-in") ? "Your session has expired, or the key was revoked. Sign in again." : "";
  for (;;) {
    $("sign-in-problem").textContent = problem;
    dialog.showModal();
    await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
    const key = $("key").value.trim();
    $("key").value = "";
    if (!/^[!-~]+$/.test(key)) {
      problem = "Enter the key: ks_ followed by letters and digits.";
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
