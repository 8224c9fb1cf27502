"""Machines whose clocks are wrong."""

from __future__ import annotations

import time

import pytest

from shared.jobs import connect
from tests.chaos.conftest import Plant, whole

pytestmark = pytest.mark.chaos

HOUR = 3600


@pytest.mark.parametrize("seconds", [-HOUR, HOUR], ids=["an hour behind", "an hour ahead"])
def test_a_worker_whose_clock_is_wrong_works(plant: Plant, seconds: int) -> None:
    """For longer than a lease, and with a deadline: no lease expires, no deadline passes, all times are right."""
    plant.start_worker("worker", "tests.chaos.doubles", "clock", str(seconds), KERNELSCOPE_LEASE_SECONDS="3")
    begin = time.time()
    jobs = [plant.submit("1,2", iterations="600", layer="conv3_1"), plant.submit("1", deadline_s="60")]
    for job, items in zip(plant.wait(jobs, 120), (2, 1), strict=True):
        whole(job, items)
        assert job.attempt == 1
        assert job.started_at
        assert job.finished_at
        assert begin - 1 < job.started_at.timestamp() < job.finished_at.timestamp() < time.time() + 1
    assert time.time() - begin > 3  # a lease
    log = (plant.folder / "housekeeping.log").read_text()
    assert "announced again" not in log
    with connect(plant.redis_url, patience=10) as redis:
        assert redis.zcard("ks:leases") == redis.zcard("ks:deadlines") == 0
