"""A device whose every kernel fails."""

from __future__ import annotations

import sys
import time

import pytest

from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, until, whole
from worker.process import BROKEN

pytestmark = pytest.mark.chaos


def test_a_worker_with_a_broken_device_ends_itself(plant: Plant) -> None:
    """Its slices are released without a counted attempt; when it is restarted, it claims nothing and ends."""
    plant.start_worker("broken", "tests.chaos.doubles", "broken")
    jobs = [plant.submit("1,2", iterations="200") for _ in range(4)]
    until(lambda: any(plant.job(job_id).status is Status.RUNNING for job_id in jobs), 10)
    assert plant.processes["broken"].wait(30) == BROKEN
    for _ in range(3):  # as its supervisor does
        plant.start("dead", [sys.executable, "-m", "tests.chaos.doubles", "dead"])
        assert plant.processes["dead"].wait(30) == BROKEN
    plant.start_worker("good")
    begin = time.monotonic()  # of one that is ready, however long that took
    for job in plant.wait(jobs, 60):
        whole(job, 2)
    assert time.monotonic() - begin < 15  # no lease had to lapse for that
    with connect(plant.redis_url, patience=10) as redis:
        strikes = [redis.hmget(f"ks:slice:{job_id}:0", "strikes", "company") for job_id in jobs]
    assert all(int(count or 0) == 0 for pair in strikes for count in pair)
