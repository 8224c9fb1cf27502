"""The client's jobs: how they are waited for, when results are read, and how files are written."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from kernelscope.client import (
    AsyncClient,
    Client,
    Explanation,
    JobFailed,
    NotFound,
    NotKernelscope,
    Result,
    ResultsNotRead,
    ServerUnreachable,
)
from kernelscope.client.notebook import MOST_ROWS, kernels_of
from kernelscope.client.sync import jobs
from kernelscope.terminal import state
from shared.errors import JobEnded, JobExpired
from shared.schemas import ExplainRequest, ItemResult, plan
from tests.unit.test_client import JOB, Answering, client

ITEMS = 250
REQUEST = ExplainRequest.model_validate({"images": ["a" * 64], "layer": "conv2_1", "kernels": list(range(ITEMS))})
LINKS = {name: f"/deep/jobs/j/{name}" for name in ("results", "retry", "bundle", "events")}
EVENTS = f"GET {LINKS['events']}"
LOSSES = dict.fromkeys(("preservation", "suppression", "regularization", "total"), 0.5)
METRICS = {
    "ssim": 0.9,
    "ssim_window": 11,
    "ssim_paper": 0.9,
    **dict.fromkeys(("mse_others", "mse_others_before", "mse_selected", "leakage", "sparsity"), 0.1),
}


def record(status: str, **changes: Any) -> dict[str, Any]:
    """A job of more items than its record includes."""
    counts = {"completed": ITEMS if status != "queued" else 0, "total": ITEMS, "failed": 0}
    own = {"status": status, "request": REQUEST, "progress": counts, "links": LINKS, "results": None, **changes}
    found: dict[str, Any] = json.loads(JOB.model_copy(update=own).model_dump_json(warnings=False))
    return found


def page(request: httpx.Request) -> httpx.Response:
    """A page of its results; the cursor is the index of the next one."""
    start, count = int(request.url.params.get("cursor", 0)), int(request.url.params["limit"])
    items = [item for part in plan(REQUEST, ITEMS) for item in part][start : start + count]
    results = [ItemResult.of(item, REQUEST, item.kernel).model_dump() for item in items]
    following = str(start + count) if start + count < ITEMS else None
    return httpx.Response(200, json={"results": results, "next_cursor": following})


def stream(*events: tuple[str, dict[str, Any]]) -> httpx.Response:
    """An event stream, which then ends."""
    text = "".join(
        f"id: {number}-0\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, (kind, data) in enumerate(events)
    )
    return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off."""

    def __init__(self, error: httpx.TransportError) -> None:
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        """Half of it."""
        yield b": half of"
        raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Half of it."""
        yield b": half of"
        raise self.error


def cut_off() -> httpx.Response:
    """A response whose connection is lost."""
    return httpx.Response(200, stream=Broken(httpx.ReadError("cut off")))


class Server:
    """Has one job, which is one state further with each request, and records the requests.

    Args:
        events: responses to requests for events, in their order.
    """

    def __init__(self, *records: dict[str, Any], events: Sequence[httpx.Response] = ()) -> None:
        self.records = list(records)
        self.events = list(events)
        self.requests: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The response."""
        self.requests.append(f"{request.method} {request.url.path}")
        if request.url.path == LINKS["results"]:
            return page(request)
        if request.url.path == LINKS["events"]:
            return self.events.pop(0)
        found = self.records.pop(0) if len(self.records) > 1 else self.records[0]
        return httpx.Response(200, json=found)


def test_results_of_a_big_job_are_read_on_first_use() -> None:
    """All of them, page by page and once; waiting, checking and printing read none."""
    server = Server(record("queued"), record("running"), record("succeeded"))
    with client(server) as one:
        job = one.job("j").wait().check()
        assert "results=" not in repr(job)
        assert server.requests == ["GET /jobs/j"] * 3
        assert [result.index for result in job.results] == list(range(ITEMS))
        assert all(isinstance(result, Result) and result._client is one for result in job.results)
        assert server.requests[3:] == ["GET /deep/jobs/j/results"] * 3
        assert len(json.loads(job.model_dump_json())["results"]) == ITEMS
        assert len(server.requests) == 6


RUNNING = ("status", {"status": "running"})
ENDED = ("status", {"status": "succeeded"})


def progress(completed: int) -> tuple[str, dict[str, Any]]:
    """An event."""
    return "progress", {"completed": completed, "total": ITEMS, "fraction": completed / ITEMS, "iteration": 7}


def test_progress_is_followed_by_events_and_not_by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is read once for each status; `on_change` gets the progress of the events, which never goes back."""
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    none = {"completed": 0, "total": ITEMS, "failed": 0}
    server = Server(
        record("queued"),
        record("running", progress=none),
        record("succeeded"),
        events=[stream(RUNNING, progress(10), progress(9), progress(30)), stream(progress(31), ENDED)],
    )
    seen: list[tuple[str, int]] = []
    with client(server) as one:
        one.job("j").wait(on_change=lambda job: seen.append((job.status, job.progress.completed))).check()
    assert seen == [("running", done) for done in (0, 10, 10, 30, 31)] + [("succeeded", ITEMS)]
    assert server.requests == ["GET /jobs/j", EVENTS, "GET /jobs/j", EVENTS, "GET /jobs/j"]


def test_what_events_do_not_contain_is_read_when_they_are_silent() -> None:
    """A queued job has a place in the queue, of which there are no events."""
    silent = httpx.Response(
        200, stream=Broken(httpx.ReadTimeout("silent")), headers={"Content-Type": "text/event-stream"}
    )
    server = Server(
        record("queued", queue_position=5),
        record("queued", queue_position=3),
        record("succeeded"),
        events=[silent, stream(ENDED)],
    )
    seen: list[int | None] = []
    with client(server) as one:
        one.job("j").wait(on_change=lambda job: seen.append(job.queue_position))
    assert seen == [3, None]


def test_results_of_a_small_job_are_those_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there when `on_change` is called."""
    monkeypatch.setattr(jobs, "REPORT_SECONDS", 0)
    (items, *_) = plan(REQUEST, ITEMS)
    one_result = ItemResult.of(items[0], REQUEST, 0).model_dump(mode="json")
    server = Server(
        record("running", results=[]),
        record("running", results=[]),
        record("succeeded", results=[one_result]),
        events=[stream(RUNNING, ("result", one_result), ENDED)],
    )
    seen: list[int] = []
    with client(server) as one:
        job = one.job("j").wait(on_change=lambda job: seen.append(len(job.results)))
        assert seen == [0, 1, 1]
        assert job.results[0]._client is one


def test_streams_that_never_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that accepts the request and then ends each stream at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    server = Server(record("running"), events=[stream() for _ in range(20)])
    with client(server) as one, pytest.raises(ServerUnreachable, match="the event stream ended early"):
        list(one.job("j").events())
    assert 5 < server.requests.count(EVENTS) < 20
    other = Server(record("running"), events=[httpx.Response(200, html="<html>")])
    with client(other) as one, pytest.raises(NotKernelscope):
        list(one.job("j").events())


def test_a_notebook_reads_as_many_results_as_it_shows() -> None:
    """And how many more there are; it does not list 250 kernels either."""
    server = Server(record("succeeded"))
    with client(server) as one:
        shown = one.job("j")._repr_html_()
    assert len(server.requests) == 2
    assert shown.count("<tr>") == MOST_ROWS + 1
    assert f"and {ITEMS - MOST_ROWS} more" in shown
    assert "kernels 0, 1, 2, 3, 4, 5, 6, 7, … (250) of" in shown
    assert kernels_of(REQUEST.model_copy(update={"kernels": "top:9"})) == "top:9"


def awaited(server: Callable[[httpx.Request], httpx.Response]) -> AsyncClient:
    """An asynchronous client whose server is a function."""
    made = AsyncClient("http://server", patience=0)
    made._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    return made


def test_on_an_event_loop_the_wait_reads_them() -> None:
    """Before that, an error says what to await."""

    async def story() -> None:
        async with awaited(Server(record("running"), record("running"), record("succeeded"))) as one:
            job = await one.job("j")
            with pytest.raises(ResultsNotRead, match=r"await job\.read"):
                print(job.results)
            assert len(await job.read()) == len(job.results) == ITEMS
            assert "and 250 more" in (await job.refresh())._repr_html_()
            await job.wait()
            assert len(job.results) == ITEMS
            assert all(result._client is one for result in job.results)

    asyncio.run(story())


def test_failed_items_are_run_again() -> None:
    """The job is then the one of the response; an error is the server's."""
    server = Server(record("failed", failed_items=ITEMS), record("queued"))
    with client(server) as one:
        job = one.job("j")
        with pytest.raises(JobFailed):
            job.check()
        assert job.retry().status == "queued"
        assert server.requests[1:] == ["POST /jobs/j/retry"]
    refusal = JobEnded("nothing of it has failed").problem()
    with client(lambda _: httpx.Response(409, json=refusal.model_dump())) as one:
        job._client = one
        with pytest.raises(Exception, match="nothing of it has failed"):
            job.retry()


def bundled(kind: type[Client | AsyncClient], server: Answering, path: Path) -> Path:
    """What `Job.bundle` of either client returns."""

    async def story() -> Path:
        async with awaited(server) as one:
            return await (await one.job("j")).bundle(path)

    if kind is AsyncClient:
        return asyncio.run(story())
    with client(server, patience=0) as one:
        return one.job("j").bundle(path)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_download_replaces_a_file_once_it_is_complete(tmp_path: Path, kind: type[Client | AsyncClient]) -> None:
    """An error, or a connection that is lost, leaves the old file, and no other."""
    bodies: dict[type[Exception] | None, Callable[[], httpx.Response]] = {
        NotFound: lambda: httpx.Response(410, json=JobExpired("it was deleted").problem().model_dump()),
        ServerUnreachable: cut_off,
        None: lambda: httpx.Response(200, content=b"all of it"),
    }
    path = tmp_path / "all.zip"
    path.write_bytes(b"old")
    for error, body in bodies.items():

        def server(request: httpx.Request, body: Callable[[], httpx.Response] = body) -> httpx.Response:
            return body() if request.url.path == LINKS["bundle"] else httpx.Response(200, json=record("succeeded"))

        if error is None:
            assert bundled(kind, server, path) == path
        else:
            with pytest.raises(error):
                bundled(kind, server, path)
            assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"all of it"


def test_a_download_is_retried(tmp_path: Path) -> None:
    """From its beginning, after the connection was lost."""
    bodies = [cut_off(), httpx.Response(503), httpx.Response(200, content=b"all of it")]

    def server(request: httpx.Request) -> httpx.Response:
        return bodies.pop(0) if request.url.path == LINKS["bundle"] else httpx.Response(200, json=record("succeeded"))

    with client(server) as one:
        assert one.job("j").bundle(tmp_path / "all.zip").read_bytes() == b"all of it"


def test_files_do_not_block_the_event_loop(tmp_path: Path) -> None:
    """A file system that does not respond: here a pipe, which can only be opened once somebody reads it."""
    image, archive = tmp_path / "image.png", tmp_path / "all.zip"
    os.mkfifo(image)
    os.mkfifo(tmp_path / "all.zip.part")

    def server(request: httpx.Request) -> httpx.Response:
        bundle = request.url.path == LINKS["bundle"]
        return httpx.Response(200, content=b"all of it") if bundle else httpx.Response(200, json=record("succeeded"))

    async def story() -> None:
        async with awaited(server) as one:
            job = await one.job("j")
            blocked = [
                asyncio.create_task(one.explain(image, layer="conv2_1", kernels=[1])),
                asyncio.create_task(job.bundle(archive)),
            ]
            done, _ = await asyncio.wait(blocked, timeout=0.3)
            assert not done
            await asyncio.to_thread(image.write_bytes, b"an image")
            assert await asyncio.to_thread((tmp_path / "all.zip.part").read_bytes) == b"all of it"
            await asyncio.gather(*blocked)

    asyncio.run(story())


def test_the_synchronous_client_works_where_a_loop_runs() -> None:
    """In a notebook a loop runs in the same thread."""

    async def cell() -> str:
        with client(Server(record("succeeded"))) as one:
            return one.job("j").wait(on_change=print).status

    assert asyncio.run(cell()) == "succeeded"


def test_results_with_an_explanation_are_of_their_own_class() -> None:
    """The others have failed, or rank kernels."""
    (items, *_) = plan(REQUEST, ITEMS)
    one_result, other = (ItemResult.of(item, REQUEST, item.kernel).model_dump(mode="json") for item in items[:2])
    one_result |= {"metrics": METRICS, "losses": LOSSES}
    other |= {"ranking": [{"kernel": 5, "mean": 1, "max": 2, "active": 0.5}]}
    with client(Server(record("succeeded", results=[one_result, other]))) as one:
        job = one.job("j")
    assert [isinstance(result, Explanation) for result in job.results] == [True, False]
    assert [result.metrics.ssim for result in job.explanations] == [0.9]
    assert [[kernel.kernel for kernel in ranking] for ranking in job.rankings] == [[], [5]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": "queued"}, "queued"),
        ({"status": "queued", "queue_position": 3, "queue_seconds": 41.2}, "queued, place 3, about 41 s"),
        ({"status": "running"}, "running: 1 of 1"),
        ({"status": "running", "waiting_for": "a worker"}, "running: 1 of 1, waits for a worker"),
    ],
)
def test_a_line_on_a_job(changes: dict[str, Any], text: str) -> None:
    """Its place while it waits, and how long that may be."""
    assert state(JOB.model_copy(update=changes)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (40_000, "11 h")]
)
def test_an_estimate_is_shown_in_sensible_units(seconds: float, text: str) -> None:
    """Not 40,000 seconds."""
    at = JOB.progress.model_copy(update={"seconds_left": seconds, "total": None})
    assert state(JOB.model_copy(update={"status": "running", "progress": at})) == f"running: 1 of ?, about {text} left"
