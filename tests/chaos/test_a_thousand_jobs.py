"""Many callers at once, and workers killed again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest

from shared.jobs import connect
from tests.chaos.conftest import Plant, running, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

CLIENTS = 20
SECONDS_BETWEEN_KILLS = 10 if FULL else 20  # the first is sooner: a fast machine is done with sixty jobs by then


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """Where a job may see more workers die than it may elsewhere: a slow machine does little between two kills."""
    with running(tmp_path, KERNELSCOPE_MAX_ATTEMPTS="10") as plant:
        yield plant


def test_each_job_has_its_results_once(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """1,000 jobs (60 in `make test-slow`) of 20 clients on two workers."""
    count = 1000 if FULL else 60
    names = ("first", "second")
    for name in names:
        plant.start_worker(name, supervised=True)
    over, kills = Event(), [0]

    def killer() -> None:
        moments = random.Random(0)
        while not over.wait(SECONDS_BETWEEN_KILLS if kills[0] else 2):
            plant.kill(moments.choice(names))
            kills[0] += 1

    thread = Thread(target=killer)
    begin = time.monotonic()
    thread.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            jobs = list(clients.map(lambda _: plant.submit("top:1"), range(count)))
        finished = plant.wait(jobs, 1200)
    finally:
        over.set()
        thread.join()
    for job in finished:
        whole(job, 1)
    assert len({job.id for job in finished}) == count
    with connect(plant.redis_url, patience=10) as redis:
        records = plant.records(redis)
        pictures = {records.result(job.id, 0)[2]["optimized.npy"] for job in finished}
        assert redis.zcard("ks:leases") == 0
    assert len(pictures) == count  # each its own: nobody was handed another's result
    for name, value in (("jobs", count), ("clients", CLIENTS), ("kills", kills[0]), ("results", len(pictures))):
        record_property(name, value)
    record_property("most_attempts", max(job.attempt for job in finished))
    record_property("jobs_begun_again", sum(job.attempt > 1 for job in finished))
    record_property("seconds", round(time.monotonic() - begin, 1))
    assert kills[0]
