"""The page's modules that need no document, run by Node: events, requests, numbers as people write them."""

from __future__ import annotations

import pytest

from shared.errors import JobExpired, KernelscopeError, StoreUnavailable, Unauthorized
from tests.web.page_modules import run

FOLLOW = """
const later = setTimeout;
globalThis.setTimeout = (action, milliseconds) => later(action, milliseconds > 10_000 ? 2 ** 30 : 0);
globalThis.document = Object.assign(new EventTarget(), { visibilityState: VISIBILITY });
Object.defineProperty(globalThis, "navigator", { value: {} }); // as a page without TLS: without locks
const [seen, requests, responses] = [[], [], RESPONSES];
globalThis.fetch = async (path, { headers = {} } = {}) => {
  requests.push(path.endsWith("previews=true") ? ["events", headers["Last-Event-ID"] ?? ""] : ["job"]);
  const response = responses.shift();
  if (!response) return new Promise(() => {});
  if (!Array.isArray(response)) return new Response(JSON.stringify(response), { status: response.status_code });
  const text = ([kind, data], at) => `event: ${kind}\\ndata: ${JSON.stringify(data)}\\nid: ${at + 1}-0\\n\\n`;
  return new Response(response.map(text).join(""));
};
const { follow } = await import("WEB/events.js");
follow("j", {
  status: ({ status }) => seen.push(status), progress: () => seen.push("progress"), result: () => seen.push("result"),
  lost: () => seen.push("lost"), found: () => seen.push("found"), gone: (error) => seen.push(error.message),
});
async function settled() { // until nothing has happened for a while
  for (let quiet = 0, before = ""; quiet < 5; ) {
    await new Promise((resolve) => later(resolve, 50));
    const now = JSON.stringify([seen, requests, responses.length]);
    quiet = now === before ? quiet + 1 : 0;
    before = now;
  }
}
await settled();
if (document.visibilityState === "hidden") {
  seen.push("hidden");
  document.visibilityState = "visible";
  document.dispatchEvent(new Event("visibilitychange"));
  await settled();
}
console.log(JSON.stringify({ seen, requests }));
process.exit();
"""


def followed(*responses: object, visibility: str = "visible") -> tuple[list[str], list[list[str]]]:
    """What the page sees of a job, and what it requests; a list is a stream of events, anything else the job."""
    found = run(FOLLOW, RESPONSES=responses, VISIBILITY=visibility)
    return found["seen"], found["requests"]


def problem(error: KernelscopeError) -> dict[str, object]:
    """As an event's data, and as a response."""
    content = error.problem().model_dump(mode="json")
    return {**content, "status_code": content["status"]}


RUNNING = ["status", {"status": "running"}]
ENDED = ["status", {"status": "succeeded"}]
JOB = {"status": "running", "status_code": 200}


def test_a_deleted_job_is_followed_no_more() -> None:
    """The stream's event says so."""
    seen, requests = followed([RUNNING, ["gone", problem(JobExpired("it was deleted"))]])
    assert seen == ["found", "running", f"{JobExpired.title}: it was deleted"]
    assert requests == [["events", ""]]


def test_a_job_that_is_run_again_is_followed_beyond_its_first_end() -> None:
    """A reader of all events sees both ends; the stream ends after the second."""
    failed = ["status", {"status": "failed"}]
    seen, requests = followed([RUNNING, failed, ["status", {"status": "queued"}], RUNNING, failed])
    assert seen == ["found", "running", "failed", "queued", "running", "failed"]
    assert len(requests) == 1


@pytest.mark.parametrize("error", [Unauthorized("revoked"), KernelscopeError("a bug")])
def test_after_a_problem_the_page_requests_the_job_and_resumes(error: KernelscopeError) -> None:
    """The request is what opens the dialog where a key is needed; no event is read twice."""
    seen, requests = followed([RUNNING, ["problem", problem(error)]], JOB, [ENDED])
    assert seen == ["found", "running", "found", "succeeded"]
    assert requests == [["events", ""], ["job"], ["events", "1-0"]]


def test_a_refused_stream_is_not_retried_for_ever() -> None:
    """The job itself says why."""
    away, gone = problem(StoreUnavailable("away")), problem(JobExpired("it was deleted"))
    seen, requests = followed(away, away, gone, gone)
    assert seen == ["lost", f"{JobExpired.title}: it was deleted"]
    assert requests == [["events", ""], ["job"]] * 2


def test_a_connection_that_breaks_is_lost_and_found_again() -> None:
    """And resumed after the last event."""
    seen, requests = followed([RUNNING, ["result", {"index": 0}]], [ENDED])
    assert seen == ["found", "running", "result", "lost", "found", "succeeded"]
    assert requests == [["events", ""], ["events", "2-0"]]


def test_a_hidden_tab_requests_nothing() -> None:
    """Until it is visible."""
    seen, requests = followed([ENDED], visibility="hidden")
    assert seen == ["hidden", "found", "succeeded"]
    assert len(requests) == 1


LATE = """
const [seen, answers] = [[], []];
globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
const locks = { request: (name, options, action) => action(POLLED ? null : {}) }; // the other tabs have all streams
Object.defineProperty(globalThis, "navigator", { value: { locks } });
globalThis.fetch = (path) => (path.endsWith("previews=true") ? Promise.resolve(new Response("", { status: 503 }))
  : new Promise((resolve) => answers.push(resolve)));
const { follow } = await import("WEB/events.js");
const kinds = ["status", "progress", "result", "lost", "found", "gone"];
const stop = follow("j", Object.fromEntries(kinds.map((kind) => [kind, () => seen.push(kind)])));
const settled = () => new Promise((resolve) => setTimeout(resolve, 100));
await settled();
if (STOPPED) stop();
answers[0](new Response(JSON.stringify({ status: "succeeded", progress: {}, results: [{ index: 0 }] })));
await settled();
console.log(JSON.stringify([seen, answers.length]));
process.exit();
"""


@pytest.mark.parametrize(("polled", "expected"), [(True, ["found", "status", "result"]), (False, ["status"])])
def test_a_late_answer_is_not_passed_on(*, polled: bool, expected: list[str]) -> None:
    """Of a job that is followed no more: another one is shown by then."""
    assert run(LATE, POLLED=polled, STOPPED=False) == [expected, 1]
    assert run(LATE, POLLED=polled, STOPPED=True) == [[], 1]


SUBMIT = """
const later = setTimeout;
globalThis.setTimeout = (action) => later(action, 0);
const [keys, statuses] = [new Set(), STATUSES];
globalThis.fetch = async (path, { headers }) => {
  keys.add(headers["Idempotency-Key"]);
  const status = statuses.shift();
  return new Response(status === 202 ? "{}" : "<html>", { status });
};
const { submit } = await import("WEB/server.js");
const said = await submit("explain", {}).then(() => "made", ({ message, status }) => `${status} ${message}`);
console.log(JSON.stringify([said, keys.size, statuses.length]));
"""


def test_a_job_is_sent_again_where_a_proxy_says_that_the_server_is_away() -> None:
    """With the same key, so that one job is made; other errors are final."""
    assert run(SUBMIT, STATUSES=[502, 503, 504, 202]) == ["made", 1, 0]
    said, _, left = run(SUBMIT, STATUSES=[500, 202])
    assert said.startswith("500 The server answered 500")
    assert left == 1


NUMBERS = """
const { numbersOf } = await import("WEB/numbers.js");
const options = OPTIONS;
console.log(JSON.stringify(TEXTS.map((text) => {
  try { return numbersOf(text, "β", options); } catch (error) { return error.message; }
})));
"""


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, {"": [], "0.5": [0.5], "1, 2": [1, 2], "0,5; 2": [0.5, 2], "1e-3 .5": [0.001, 0.5], "1; 2;": [1, 2]}),
        ({"one": True}, {"0,95": [0.95], "0.95": [0.95], "7": [7], "1,000": [1]}),
        ({"one": True, "large": True}, {"0,95": [0.95], "1000": [1000], "0.125": [0.125], "1,2500": [1.25]}),
        ({"one": True, "whole": True}, {"1000": [1000], "": []}),
        ({"whole": True}, {"12,40": [12, 40], "1 2;3": [1, 2, 3]}),
    ],
)
def test_numbers_are_read(options: dict[str, bool], read: dict[str, list[float]]) -> None:
    """A comma between digits is a decimal comma where nothing else can be meant."""
    assert run(NUMBERS, OPTIONS=options, TEXTS=list(read)) == list(read.values())


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ({}, "0,5", "β: does “0,5” mean 0.5, or 0 and 5? Write 0.5, or 0; 5."),
        ({}, "0,1,10", "Separate the numbers by semicolons: 0; 1; 10."),
        ({}, "much", "“much” is not a number of at least 0"),
        ({}, "-1", "“-1” is not a number"),
        ({}, "Infinity", "“Infinity” is not a number"),
        ({}, "1e999", "“1e999” is not a number"),
        ({"one": True}, "1; 2", "β: give one number, not 2."),
        ({"whole": True}, "1.5", "“1.5” is not a whole number"),
        ({"one": True, "whole": True}, "1,000", "β: “1,000” is not a whole number. Write it without a comma."),
        ({"one": True, "whole": True}, "1,5", "“1,5” is not a whole number"),
        ({"one": True, "whole": True}, "1 000", "β: give one number, not 2."),
        ({"one": True, "large": True}, "1,000", "β: does “1,000” mean 1.000, or 1000? Write 1.000, or 1000."),
    ],
)
def test_an_ambiguous_number_is_refused(options: dict[str, bool], text: str, said: str) -> None:
    """It never becomes two numbers, or none, in silence."""
    assert said in run(NUMBERS, OPTIONS=options, TEXTS=[text])[0]
