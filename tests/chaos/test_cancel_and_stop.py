"""Cancelling a job, and telling a worker to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

import httpx
import pytest

from shared.jobs import Transitions, connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, until, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

ENDLESS = {"iterations": "100000", "layer": "conv4_1"}


def test_cancel_frees_the_worker_within_a_second(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """A worker with one place: the next job starts once the one before is cancelled. A queued one never starts."""
    plant.start_worker("worker", KERNELSCOPE_SLICES="1")
    freed: list[float] = []
    for _ in range(10 if FULL else 2):
        running = plant.submit("1,2,3,4", **ENDLESS)
        queued, following = plant.submit("1", **ENDLESS), plant.submit("1", iterations="20")
        until(partial(_iteration, plant, running), 30)
        assert httpx.post(f"{plant.url}/jobs/{queued}/cancel").json()["status"] == "cancelled"
        begin = time.monotonic()
        assert httpx.post(f"{plant.url}/jobs/{running}/cancel").status_code == 200
        until(partial(_begun, plant, following), 10)
        freed.append(time.monotonic() - begin)
        assert httpx.post(f"{plant.url}/jobs/{running}/cancel").status_code == 409
        whole(plant.wait([following], 30)[0], 1)
        never = plant.job(queued)
        assert (never.status, never.started_at) == (Status.CANCELLED, None)
        assert [result.status for result in plant.job(running).results] == ["cancelled"] * 4
    record_property("cancelled", len(freed))
    record_property("slowest_seconds_to_a_free_place", round(max(freed), 2))
    assert max(freed) <= 1.5  # a second for the place; the next message and its picture take their time too


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "SIGINT twice"])
def test_stopping_a_busy_worker(
    plant: Plant, numbers: list[signal.Signals], record_property: Callable[[str, object], None]
) -> None:
    """It ends within 10 s, its jobs are back in the queue, none failed, and another worker continues them."""
    plant.start_worker("first")
    jobs = [plant.submit("1,2,3,4", layer="conv3_1", iterations="150") for _ in range(4)]
    jobs.append(plant.submit(",".join(map(str, range(20))), layer="conv3_1", iterations="30"))
    until(lambda: sum(plant.job(job_id).progress.completed for job_id in jobs) >= 2, 60)
    begin = time.monotonic()
    for number in numbers:
        plant.kill("first", number)
        time.sleep(0.05)
    code = plant.processes["first"].wait(30)
    took = time.monotonic() - begin
    record_property("seconds_to_the_end", round(took, 1))
    assert took <= 10
    before = [plant.job(job_id) for job_id in jobs]
    assert not any(job.status is Status.FAILED for job in before)
    with connect(plant.redis_url, patience=10) as redis:
        assert redis.zcard("ks:leases") == 0 or numbers != [signal.SIGTERM]
        assert Transitions(redis).queued() or numbers != [signal.SIGTERM]
    assert code == 0 or numbers != [signal.SIGTERM]
    plant.start_worker("second")
    after = plant.wait(jobs, 180)
    for job, earlier in zip(after, before, strict=True):
        assert job.status is Status.SUCCEEDED
        assert job.progress.completed == job.progress.total
        kept = {result.index: result for result in job.results}
        assert all(kept[result.index] == result for result in earlier.results)


def _iteration(plant: Plant, job_id: str) -> int | None:
    return plant.job(job_id).progress.iteration


def _begun(plant: Plant, job_id: str) -> bool:
    return plant.job(job_id).status is not Status.QUEUED
