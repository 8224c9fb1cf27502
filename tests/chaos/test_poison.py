"""A job that kills its worker each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.schemas import Status, WholeJob
from tests.chaos.conftest import Plant, whole
from tests.chaos.doubles import BAD_KERNEL
from tests.conftest import FULL

pytestmark = pytest.mark.chaos


def test_poison_fails_and_affects_no_other_job(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """It fails with the reason after three attempts on its own; jobs beside it, or behind it in the queue, succeed."""
    plant.start_worker("worker", "tests.chaos.doubles", "poison", supervised=True, KERNELSCOPE_LEASE_SECONDS="5")
    alone = plant.submit(str(BAD_KERNEL))
    assert _given_up(plant, alone).attempt == 3
    long = {"iterations": "1000"}
    mates = [plant.submit("1,2", **long) for _ in range(3)]
    poison = [plant.submit(str(BAD_KERNEL)) for _ in range(3 if FULL else 1)]
    mates += [plant.submit("1,2", **long) for _ in range(3)]
    for job in plant.wait(mates, 400):
        whole(job, 2)
    attempts = [_given_up(plant, job_id).attempt for job_id in poison]
    assert max(attempts) <= 5  # in company at first, which is no proof
    whole(plant.wait([plant.submit("1")], 60)[0], 1)
    record_property("poison_jobs", 1 + len(poison))
    record_property("attempts_alone", 3)
    record_property("most_attempts_in_company", max(attempts))
    record_property("mates", len(mates))
    record_property("most_attempts_of_a_mate", max(plant.job(job_id).attempt for job_id in mates))


def _given_up(plant: Plant, job_id: str) -> WholeJob:
    (job,) = plant.wait([job_id], 180)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.type == "/problems/attempts-exhausted"
    assert f"{job.attempt} times" in job.error.detail
    return job
