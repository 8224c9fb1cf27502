"""The page's modules that need no document, run by Node: events, numbers as people write them, jobs as commands."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest
import typer

from kernelscope.cli import app
from shared.errors import JobExpired, KernelscopeError, StoreUnavailable, Unauthorized
from shared.schemas import ExplainOptions
from tests.conftest import node

WEB = Path(__file__).parents[2] / "api" / "web"

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


def run(program: str, **names: object) -> Any:
    """What a program prints, which may import the page's modules."""
    for name, value in names.items():
        program = program.replace(name, json.dumps(value))
    command = [node(), "--input-type=module", "--eval", program.replace("WEB/", f"{WEB.as_uri()}/")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


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
        ({"one": True}, {"0,95": [0.95], "0.95": [0.95], "7": [7]}),
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
    ],
)
def test_a_number_that_is_unclear_is_asked_about(options: dict[str, bool], text: str, said: str) -> None:
    """It never becomes two numbers, or none, in silence."""
    assert said in run(NUMBERS, OPTIONS=options, TEXTS=[text])[0]


HOSTILE = """it's "a"; $(touch x) `b` 猫,1.png"""
REQUEST: dict[str, Any] = {
    "model": "my 'net'",
    "layer": "layer3.1; rm",
    "kernels": [3, 16],
    "methods": ["evidence", "lrp"],
    "rule": "gamma_epsilon",
    "scaling": "minmax",
    "alpha": [0.5, 2.0],
    "beta": [1e-7],
    "solver": "fast",
    "effort": "quick",
    "iterations": 7,
    "target_ssim": 0.95,
    "max_preservation": 0.5,
    "only_remove": True,
    "gamma": 0.25,
    "max_invention": 0.1,
    "deadline_s": 600.0,
    "webhook_url": "https://example.com/done?a=1;type=x&b='c'",
}
RECIPE = """
const recipes = await import("WEB/recipes.js");
const request = REQUEST;
const place = { server: "http://lab:8000/ks/", key: true, name: ({ names }, at) => names[at] };
console.log(JSON.stringify(recipes[KIND](request, place)));
"""


def written(value: object) -> str:
    """As JavaScript writes it."""
    if value is True:
        return "true"
    return (f"{value:g}" if isinstance(value, float) else str(value)).replace("e-07", "e-7")


def recipe(kind: str, **changes: object) -> str:
    """Of a request in which every option is set."""
    request = {**REQUEST, "images": ["a" * 64, "b" * 64], "names": [f"folder/{HOSTILE}", None], **changes}
    text: str = run(RECIPE, REQUEST=request, KIND=kind)
    return text


def test_every_option_is_in_the_request_of_these_tests() -> None:
    """Else they would not notice that one is missing in a command."""
    assert set(REQUEST) == set(ExplainOptions.model_fields)


def test_curl_has_every_field(tmp_path: Path) -> None:
    """As a shell reads it; values that curl would interpret are sent as they are."""
    words = shlex.split(recipe("curl"))
    assert words[0] == "curl"
    assert words[-1] == "http://lab:8000/ks/explain"
    assert "Authorization: Bearer YOUR-KEY" in words
    fields = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word in ("-F", "--form-string"))
    expected = {
        name: ",".join(map(written, value if isinstance(value, list) else [value])) for name, value in REQUEST.items()
    }
    images = [words[at + 1] for at, word in enumerate(words) if word == "-F" and words[at + 1].startswith("image=")]
    quoted = HOSTILE.replace('"', '\\"')
    assert images == [f'image=@"{quoted}"', f"image=@{'b' * 8}.png"]
    fields.pop("image")
    assert fields == expected
    forms = [words[at - 1] for at, word in enumerate(words) if word.startswith(("webhook_url=", "layer="))]
    assert forms == ["--form-string", "--form-string"]


def test_the_command_line_has_every_field() -> None:
    """An option for each, repeated for each value."""
    words = shlex.split(recipe("commandLine"))
    assert words[:3] == ["KERNELSCOPE_API_KEY=YOUR-KEY", "kernelscope", "explain"]
    assert words[3:5] == [HOSTILE, f"{'b' * 8}.png"]
    own = {"methods": "method", "kernels": "kernel"}
    rest = words[5:]
    for name, value in REQUEST.items():
        flag = "--" + own.get(name, name).replace("_", "-")
        given = [rest[at + 1] for at, word in enumerate(rest) if word == flag] if value is not True else []
        assert flag in rest
        if value is not True:
            values = value if isinstance(value, list) else [value]
            assert given == list(map(written, values))
    assert rest[-2:] == ["--url", "http://lab:8000/ks"]
    assert "--top 4" in recipe("commandLine", kernels="top:4")


def test_the_command_line_has_the_options_of_the_program() -> None:
    """Of each field for which `kernelscope explain` has an option, that is the one."""
    command: Any = typer.main.get_command(app)
    options = {param.name: param.opts for param in command.commands["explain"].params}
    words = set(shlex.split(recipe("commandLine"))) | {"--top"}
    for name in {*REQUEST, "top", "url"} & set(options):
        assert words & set(options[name]), name


def test_python_has_every_field() -> None:
    """As Python reads it."""
    calls: dict[str, Any] = {}

    class Client:
        def __init__(self, url: str, key: str) -> None:
            calls["client"] = url, key

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def explain(self, images: list[str], **options: object) -> Self:
            calls.update(images=images, options=options)
            return self

        def wait(self) -> Self:
            return self

        def check(self) -> None:
            calls["checked"] = True

        def save(self, folder: str) -> None:
            calls["folder"] = folder

    text = recipe("python")
    assert text.startswith("from kernelscope import Client\n")
    exec(text.partition("\n")[2], {"Client": Client})  # noqa: S102 - what the page shows is meant to be run
    assert calls["client"] == ("http://lab:8000/ks", "YOUR-KEY")
    assert calls["images"] == [HOSTILE, f"{'b' * 8}.png"]
    assert calls["options"] == REQUEST


def test_the_page_has_a_box_for_every_option() -> None:
    """So that “Change and run again” can carry it."""
    html = (WEB / "index.html").read_text()
    chosen_elsewhere = {"model", "layer", "kernels", "methods"}
    for name in set(ExplainOptions.model_fields) - chosen_elsewhere:
        assert f'id="{name}"' in html
        assert f"{name}: () =>" in (WEB / "request.js").read_text()
