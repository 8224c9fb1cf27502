"""kill −9 of a worker in mid-job."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import pytest

from shared.jobs import connect
from shared.schemas import Status, WholeJob
from tests.chaos.conftest import Plant, until, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos


def test_kill_9_at_random_moments(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """Every job succeeds, each item is committed once, and another worker takes over within 30 s."""
    kills = 20 if FULL else 1
    moments = random.Random(0)
    plant.start_worker("worker", supervised=True)
    redelivered: list[float] = []
    again = 0
    for _ in range(kills):
        jobs = [plant.submit("1,2,3,4", layer="conv3_1", effort="standard") for _ in range(2)]
        until(partial(_at_attempt, plant, jobs[0], 1), 30)
        time.sleep(moments.uniform(0, 3))
        before = [plant.job(job_id) for job_id in jobs]
        plant.kill("worker")
        running = [job.id for job in before if job.status is Status.RUNNING]
        if running:
            redelivered.append(until(partial(_at_attempt, plant, running[0], 2), 60))
        after = plant.wait(jobs, 120)
        for job in after:
            whole(job, 4)
        again += _repeated(before, after)
    for name, value in (("kills", kills), ("in_mid_job", len(redelivered)), ("repeated_items", again)):
        record_property(name, value)
    record_property("slowest_redelivery_seconds", round(max(redelivered, default=0.0), 1))
    assert redelivered
    assert max(redelivered) <= 30
    assert again == 0
    with connect(plant.redis_url, patience=10) as redis:
        assert redis.zcard("ks:leases") == 0


def _at_attempt(plant: Plant, job_id: str, attempt: int) -> bool:
    return plant.job(job_id).attempt == attempt


def _repeated(before: list[WholeJob], after: list[WholeJob]) -> int:
    """Items that were finished before the kill and have another result after it."""
    later = {(job.id, result.index): result for job in after for result in job.results}
    return sum(later[job.id, result.index] != result for job in before for result in job.results)
