"""kill −9 of every process at random moments of jobs' lives: submitted, run, archived, removed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

from kernelscope.client import Client
from kernelscope.client.errors import ClientError, NotFound
from shared.errors import JobExpired
from shared.jobs import connect
from tests.chaos.conftest import Plant, picture, until, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

KILLS = 50 if FULL else 6
PROCESSES = ("worker", "housekeeping", "api", "redis")
FIELDS: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_1", "effort": "quick"}


def test_nothing_is_lost_duplicated_or_left_over(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """Accepted jobs succeed, deleted ones are removed with their files; the audit checks the rest."""
    moments, killed = random.Random(1), cycle(PROCESSES)
    plant.start_worker("worker", supervised=True)
    plant.supervised |= {"housekeeping", "api", "redis"}
    kept: list[str] = []
    removed: list[str] = []
    with Client(plant.url, patience=60) as client:
        for number in range(KILLS):
            jobs = [client.explain([picture()], kernels="1,2", **FIELDS) for _ in range(2)]
            time.sleep(moments.uniform(0, 1.5))
            plant.kill(next(killed))
            for job in [*jobs, client.explain([picture()], kernels="3", **FIELDS)]:
                (removed if number % 3 == 0 and job is jobs[0] else kept).append(job.id)
            if removed and number % 3 == 0:
                _delete(client, removed[-1])
    for done in plant.wait(kept, 300):
        whole(done, len(done.results))
    with connect(plant.redis_url, persistent=True) as redis:
        until(lambda: redis.zcard("ks:finished") == redis.zcard("ks:removed") == redis.zcard("ks:late") == 0, 90)
        for job_id in removed:
            with pytest.raises(JobExpired):
                plant.records(redis).job(job_id)
        assert redis.keys("ks:job:*") == redis.keys("ks:slice:*") == []
        listed = {line.split()[0] for line in redis.zrange("ks:jobs:", 0, -1)}
    assert listed == set(kept)
    record_property("kills", KILLS)
    record_property("jobs", len(kept))
    record_property("removed", len(removed))


def _delete(client: Client, job_id: str) -> None:
    """Delete a job, with retries, as a client does that got no response."""
    for _ in range(50):
        try:
            client.job(job_id).delete()
        except NotFound:  # also what was removed already
            return
        except ClientError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"job {job_id} could not be deleted")
