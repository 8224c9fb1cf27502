"""The broker's queue is deleted; the job records remain."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.jobs import connect
from tests.chaos.conftest import Plant, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos


def test_every_queued_job_still_runs(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """The messages of small and big jobs are wiped before any worker sees them; one of a job that came later is not."""
    count = 200 if FULL else 10
    jobs = [plant.submit("1", iterations="20") for _ in range(count)]
    big = plant.submit(",".join(map(str, range(20))), iterations="2")
    with connect(plant.redis_url, patience=10) as redis:
        keys = [key for key in redis.keys("*") if not key.startswith("ks:")]
        assert {"interactive", "bulk"} <= set(keys)
        redis.delete(*keys)
    jobs.append(plant.submit("1", iterations="20"))
    plant.start_worker("worker")
    for job in plant.wait(jobs, 120):
        whole(job, 1)
    assert plant.wait([big], 60)[0].progress.completed == 20
    record_property("jobs", len(jobs) + 1)
