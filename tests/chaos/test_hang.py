"""A device that never returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from shared.schemas import Status
from tests.chaos.conftest import Plant, until, whole
from worker.process import HUNG

pytestmark = pytest.mark.chaos


def test_the_jobs_of_a_hung_device_finish_elsewhere(
    plant: Plant, record_property: Callable[[str, object], None]
) -> None:
    """Back within 30 s; the hung process ends itself, so that its supervisor can start it again."""
    plant.start_worker("hung", "tests.chaos.doubles", "hang")
    jobs = [plant.submit("1") for _ in range(3)]
    until(lambda: all(plant.job(job_id).status is Status.RUNNING for job_id in jobs), 10)
    begin = time.monotonic()
    plant.start_worker("good")
    until(lambda: all(plant.job(job_id).attempt == 2 for job_id in jobs), 60)
    back = time.monotonic() - begin
    for job in plant.wait(jobs, 60):
        whole(job, 1)
    assert plant.processes["hung"].wait(30) == HUNG
    record_property("back_after_seconds", round(back, 1))
    assert back <= 30
