"""A hundred explanations a second come to an S3 store, as many are removed: no backlog grows, no lease is late."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from threading import Event

import pytest

from shared.jobs import Records, Retention, Transitions, connect, new_id
from shared.schemas import ExplainRequest, ItemResult, plan
from shared.store import BlobStore
from tests.chaos.conftest import Plant, until
from tests.chaos.s3 import S3
from tests.conftest import FULL

pytestmark = pytest.mark.chaos

SECONDS = 600 if FULL else 30
RATE = 100 if FULL else 20
AGE = 20.0  # seconds after which a job is deleted: it is archived by then
FILES = {"optimized.png": 30_000, "optimized.npy": 60_000, "maps.npz": 8_000, "history.json": 2_000}
LAPSE_SECONDS = 2.0 if FULL else 10.0  # in which it is seen


class Lab:
    """Callers and workers in one process, without computations."""

    def __init__(self, plant: Plant, store: BlobStore) -> None:
        self.redis = connect(plant.redis_url, persistent=True)
        self.store = store
        self.transitions = Transitions(self.redis, lease_seconds=1)
        self.records = Records(self.redis, store)
        self.retention = Retention(self.transitions, self.records)

    def submit(self) -> str:
        """Submit a job on a new image."""
        job_id = new_id()
        image = self.store.put(job_id, os.urandom(50_000))
        request = ExplainRequest(images=[image], layer="conv3_3", kernels=[1])
        return self.transitions.submit(job_id, request, plan(request, 10), 86_400).job_id

    def explain(self) -> str:
        """Create a job that has succeeded."""
        job_id = self.submit()
        claim = self.transitions.claim(f"{job_id}:0")
        assert claim
        for item in claim.items:
            blobs = {name: self.store.put(job_id, os.urandom(size)) for name, size in FILES.items()}
            self.transitions.commit(claim, ItemResult.of(item, claim.request, item.kernel), blobs)
        self.transitions.finish(claim)
        return job_id

    def lapses(self, over: Event) -> Iterator[float]:
        """Workers die, one after another: seconds from the end of each lease until its slice waits again."""
        while not over.is_set():
            job_id = self.submit()
            assert self.transitions.claim(f"{job_id}:0")
            taken = until(lambda: self.redis.hget(f"ks:slice:{job_id}:0", "status") == "queued", 30)  # noqa: B023
            yield taken - self.transitions.lease_seconds
            self.retention.remove(job_id)

    def backlog(self) -> int:
        """Number of jobs to be archived, or whose files are to be deleted."""
        return sum(self.redis.zcard(key) for key in ("ks:finished", "ks:removed", "ks:late"))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """With Redis, a SeaweedFS and housekeeping as processes."""
    s3 = S3(tmp_path / "s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = BlobStore(s3.environment["KERNELSCOPE_STORE_URL"])
    plant = Plant(tmp_path, **s3.environment, KERNELSCOPE_LEASE_SECONDS="1")
    try:
        s3.wait(store)
        plant.start_redis()
        plant.start_service()
        yield Lab(plant, store)
    finally:
        plant.close()
        s3.close()


@pytest.mark.timeout(1200)
def test_removal_keeps_up_and_delays_no_lease(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    """Ten minutes in full, half a minute and a fifth of the rate in `make test-slow`."""
    backlog: list[int] = []
    jobs: list[tuple[float, str]] = []
    begin, over = time.monotonic(), Event()
    with ThreadPoolExecutor(16) as pool:
        watch = pool.submit(lambda: list(lab.lapses(over)))
        try:
            for second in range(SECONDS):
                made = list(pool.map(lambda _: lab.explain(), range(RATE)))
                at = time.monotonic()
                jobs += [(at, job_id) for job_id in made]
                old = sum(made_at < at - AGE for made_at, _ in jobs)
                list(pool.map(lambda job: lab.retention.remove(job[1]), jobs[:old]))
                del jobs[:old]
                backlog.append(lab.backlog())
                time.sleep(max(0.0, begin + second + 1 - time.monotonic()))
        finally:
            over.set()
        lapses = watch.result()
    seconds = time.monotonic() - begin
    half, quarter = median(backlog[SECONDS // 2 : 3 * SECONDS // 4]), median(backlog[3 * SECONDS // 4 :])
    for name, value in (
        ("explanations_a_second", round(SECONDS * RATE / seconds, 1)),
        ("backlog_of_the_third_quarter", half),
        ("backlog_of_the_last_quarter", quarter),
        ("lapses", len(lapses)),
        ("slowest_lapse_s", round(max(lapses), 2)),
    ):
        record_property(name, value)
    assert max(lapses) <= LAPSE_SECONDS
    assert not FULL or quarter < 1.1 * half
    for _, job_id in jobs:
        lab.retention.remove(job_id)
    until(lambda: lab.backlog() == 0, 120)
    assert lab.redis.keys("ks:job:*") == []
