"""The client's jobs: what is polled is small, results are read when they are asked for, an old file is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kernelscope.client import AsyncClient, Client, JobFailed, NotFound, Result, ResultsNotRead, ServerUnreachable
from kernelscope.client.notebook import MOST_ROWS, kernels_of
from kernelscope.terminal import state
from shared.errors import JobEnded, JobExpired
from shared.schemas import ExplainRequest, ItemResult, plan
from tests.unit.test_client import JOB, client

ITEMS = 250
REQUEST = ExplainRequest.model_validate({"images": ["a" * 64], "layer": "conv2_1", "kernels": list(range(ITEMS))})
LINKS = {name: f"/deep/jobs/j/{name}" for name in ("results", "retry", "bundle", "events")}


def record(status: str, **changes: Any) -> dict[str, Any]:
    """A job of more items than its record tells."""
    counts = {"completed": ITEMS if status != "queued" else 0, "total": ITEMS, "failed": 0}
    own = {"status": status, "request": REQUEST, "progress": counts, "links": LINKS, "results": None, **changes}
    told: dict[str, Any] = json.loads(JOB.model_copy(update=own).model_dump_json(warnings=False))
    return told


def page(request: httpx.Request) -> httpx.Response:
    """Of its results; a cursor is where to go on."""
    start, count = int(request.url.params.get("cursor", 0)), int(request.url.params["limit"])
    items = [item for part in plan(REQUEST, ITEMS) for item in part][start : start + count]
    results = [ItemResult.of(item, REQUEST, item.kernel).model_dump() for item in items]
    following = str(start + count) if start + count < ITEMS else None
    return httpx.Response(200, json={"results": results, "next_cursor": following})


class Server:
    """Tells of one job, a state further with each look, and counts what it is asked for."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.records = list(records)
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The answer."""
        self.asked.append(f"{request.method} {request.url.path}")
        if request.url.path == LINKS["results"]:
            return page(request)
        told = self.records.pop(0) if len(self.records) > 1 else self.records[0]
        return httpx.Response(200, json=told)


def test_results_of_a_big_job_are_read_once_they_are_looked_at() -> None:
    """All of them, page by page and once; whoever waits, checks, or prints the job reads none."""
    server = Server(record("queued"), record("running"), record("succeeded"))
    seen: list[str] = []
    with client(server) as one:
        job = one.job("j").wait(on_change=lambda found: seen.append(found.status)).check()
        assert seen == ["running", "succeeded"]
        assert "results=" not in repr(job)
        assert server.asked == ["GET /jobs/j"] * 3
        assert [result.index for result in job.results] == list(range(ITEMS))
        assert all(isinstance(result, Result) and result._client is one for result in job.results)
        assert server.asked[3:] == ["GET /deep/jobs/j/results"] * 3
        assert len(json.loads(job.model_dump_json())["results"]) == ITEMS
        assert len(server.asked) == 6


def test_a_notebook_reads_as_many_results_as_it_shows() -> None:
    """And says how many more there are; not 250 numbers of kernels either."""
    server = Server(record("succeeded"))
    with client(server) as one:
        shown = one.job("j")._repr_html_()
    assert len(server.asked) == 2
    assert shown.count("<tr>") == MOST_ROWS + 1
    assert f"and {ITEMS - MOST_ROWS} more" in shown
    assert "kernels 0, 1, 2, 3, 4, 5, 6, 7, … (250) of" in shown
    assert kernels_of(REQUEST.model_copy(update={"kernels": "top:9"})) == "top:9"


def awaited(server: Callable[[httpx.Request], httpx.Response]) -> AsyncClient:
    """A client on an event loop, whose server is a function."""
    made = AsyncClient("http://server", patience=0)
    made._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(server))
    return made


def test_on_an_event_loop_the_wait_reads_them() -> None:
    """Before that, asking for them without waiting says how."""

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


def test_what_failed_is_run_again() -> None:
    """The job is then as the server answers it; a refusal is the server's."""
    server = Server(record("failed", failed_items=ITEMS), record("queued"))
    with client(server) as one:
        job = one.job("j")
        with pytest.raises(JobFailed):
            job.check()
        assert job.retry().status == "queued"
        assert server.asked[1:] == ["POST /jobs/j/retry"]
    refusal = JobEnded("nothing of it has failed").problem()
    with client(lambda _: httpx.Response(409, json=refusal.model_dump())) as one:
        job._client = one
        with pytest.raises(Exception, match="nothing of it has failed"):
            job.retry()


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        """Half of it."""
        yield b"half of"
        raise httpx.ReadError("cut off")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Half of it."""
        yield b"half of"
        raise httpx.ReadError("cut off")


@pytest.mark.parametrize("how", [Client, AsyncClient])
def test_a_bundle_that_cannot_be_had_leaves_the_old_one(tmp_path: Path, how: type) -> None:
    """Whether it is refused or breaks off; a whole one takes its place."""
    answers = {
        NotFound: lambda: httpx.Response(410, json=JobExpired("it was deleted").problem().model_dump()),
        ServerUnreachable: lambda: httpx.Response(200, stream=Broken()),
        None: lambda: httpx.Response(200, content=b"all of it"),
    }
    path = tmp_path / "all.zip"
    path.write_bytes(b"old")

    def fetch(answer: Callable[[], httpx.Response]) -> None:
        def server(request: httpx.Request) -> httpx.Response:
            return answer() if request.url.path == LINKS["bundle"] else httpx.Response(200, json=record("succeeded"))

        async def story() -> None:
            async with awaited(server) as one:
                await (await one.job("j")).bundle(path)

        if how is AsyncClient:
            asyncio.run(story())
        else:
            with client(server) as one:
                one.job("j").bundle(path)

    for error, answer in answers.items():
        if error is None:
            fetch(answer)
        else:
            with pytest.raises(error):
                fetch(answer)
            assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"all of it"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"status": "queued"}, "queued"),
        ({"status": "queued", "queue_position": 3, "queue_seconds": 41.2}, "queued, place 3, about 41 s"),
        ({"status": "running"}, "running: 1 of 1"),
        ({"status": "running", "waiting_for": "a worker"}, "running: 1 of 1, waits for a worker"),
    ],
)
def test_a_line_on_a_job(changes: dict[str, Any], told: str) -> None:
    """Its place while it waits, and how long that may be."""
    assert state(JOB.model_copy(update=changes)) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (40_000, "11 h")]
)
def test_an_estimate_is_told_in_sensible_units(seconds: float, told: str) -> None:
    """Not 40,000 seconds."""
    at = JOB.progress.model_copy(update={"seconds_left": seconds, "total": None})
    assert state(JOB.model_copy(update={"status": "running", "progress": at})) == f"running: 1 of ?, about {told} left"
