"""The client's jobs: when their results are read, their classes, how they are shown, and retries."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from kernelscope.client import Explanation, JobFailed, Result, ResultsNotRead
from kernelscope.client.notebook import MOST_ROWS, kernels_of
from kernelscope.terminal import state
from shared.errors import JobEnded
from shared.schemas import ItemResult, plan
from tests.unit.client_server import ITEMS, JOB, REQUEST, Server, awaited, client, record


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


def test_the_synchronous_client_works_where_a_loop_runs() -> None:
    """In a notebook a loop runs in the same thread."""

    async def cell() -> str:
        with client(Server(record("succeeded"))) as one:
            return one.job("j").wait(on_change=print).status

    assert asyncio.run(cell()) == "succeeded"


METRICS = {
    "ssim": 0.9,
    "ssim_window": 11,
    "ssim_paper": 0.9,
    **dict.fromkeys(("mse_others", "mse_others_before", "mse_selected", "leakage", "sparsity"), 0.1),
}
LOSSES = dict.fromkeys(("preservation", "suppression", "regularization", "total"), 0.5)


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
