"""How the page follows a job, without a browser: `follow` of server.js, with streams and answers of the test's own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from shared.errors import JobExpired, KernelscopeError, StoreUnavailable, Unauthorized
from tests.conftest import node

SERVER = Path(__file__).parents[2] / "api" / "web" / "server.js"

PROGRAM = """
const told = [];
let streams = 0;
globalThis.EventSource = class {
  static CLOSED = 2;
  listeners = {};
  constructor() {
    streams += 1;
    this.tell = (kind, data) => this.listeners[kind]?.({ data: JSON.stringify(data) });
    globalThis.source = this;
  }
  addEventListener(kind, listener) { this.listeners[kind] = listener; }
  close() { this.readyState = 2; }
};
globalThis.setTimeout = (action) => queueMicrotask(action);
const answers = ANSWERS;
globalThis.fetch = async () => {
  const { status, ...problem } = answers.shift();
  return { status, ok: status < 400, json: async () => ({ status, ...problem }) };
};
const { follow } = await import("SERVER");
const on = Object.fromEntries(["status", "progress", "result", "lost"].map((name) => [name, () => told.push(name)]));
follow("j", { ...on, gone: (error) => told.push(error.message) });
for (const { kind, data } of EVENTS) {
  if (kind === "refused") {
    source.readyState = EventSource.CLOSED;
    source.tell("error");
  } else source.tell(kind, data);
  for (let turn = 0; turn < 50; turn += 1) await null;
}
console.log(JSON.stringify({ told, streams, left: answers.length }));
"""


def followed(
    events: list[tuple[str, KernelscopeError | dict[str, str] | None]], *answers: int | KernelscopeError
) -> dict[str, object]:
    """What the page was told, how often it opened a stream, and how many of the answers it did not ask for."""
    sent = [
        {"kind": kind, "data": data.problem().model_dump() if isinstance(data, KernelscopeError) else data}
        for kind, data in events
    ]
    given = [one.problem().model_dump() if isinstance(one, KernelscopeError) else {"status": one} for one in answers]
    text = PROGRAM.replace("ANSWERS", json.dumps(given)).replace("EVENTS", json.dumps(sent))
    command = [node(), "--input-type=module", "--eval", text.replace("SERVER", SERVER.as_uri())]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, object] = json.loads(ran.stdout)
    return found


RUNNING = ("status", {"status": "running"})


def test_a_job_that_is_deleted_is_told_of_and_followed_no_more() -> None:
    """By the stream's event."""
    found = followed([RUNNING, ("gone", JobExpired("it was deleted")), ("error", None)])
    assert found == {"told": ["status", f"{JobExpired.title}: it was deleted"], "streams": 1, "left": 0}


def test_a_job_that_was_run_again_is_followed_beyond_its_first_end() -> None:
    """Whoever reads its events from the beginning is told of both; the stream ends with the second."""
    ends = ("status", {"status": "failed"})
    found = followed([RUNNING, ends, ("status", {"status": "queued"}), RUNNING, ends, ("error", None)])
    assert found == {"told": ["status"] * 5, "streams": 1, "left": 0}


@pytest.mark.parametrize("error", [Unauthorized("revoked"), KernelscopeError("a bug")])
def test_after_a_problem_the_page_asks_for_the_job_and_comes_back(error: KernelscopeError) -> None:
    """Asking is what opens the dialog where a key is needed."""
    found = followed([RUNNING, ("problem", error), ("status", {"status": "succeeded"})], 200)
    assert found == {"told": ["status", "lost", "status"], "streams": 2, "left": 0}


def test_a_stream_that_is_refused_is_not_tried_for_ever() -> None:
    """The browser does not say why it was: the job itself does."""
    found = followed([("refused", None)], StoreUnavailable("away"), JobExpired("it was deleted"))
    assert found == {"told": ["lost", f"{JobExpired.title}: it was deleted"], "streams": 1, "left": 0}
