"""A worker's life: told to stop, killed, given nothing but duplicates; and jobs whose message was lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from api import housekeeping
from api.housekeeping import Housekeeper, tick
from api.services import Services
from shared import workers
from shared.jobs import Records
from shared.queue import announce
from shared.schemas import ExplainRequest, Job, Status, plan
from shared.settings import Settings
from tests.conftest import noise, png

ROOT = Path(__file__).parents[2]
SECONDS = 0.05  # of one dummy item: 50 iterations of a millisecond


@pytest.fixture
def services(settings: Settings, redis: Redis) -> Iterator[Services]:
    """The API's side, with leases short enough to wait for."""
    services = Services.open(settings.model_copy(update={"lease_seconds": 1.5}))
    yield services
    asyncio.run(services.close())


@contextmanager
def worker(services: Services, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process with the dummy engine, once it says that it is ready."""
    own = {
        "KERNELSCOPE_REDIS_URL": services.settings.redis_url.get_secret_value(),
        "KERNELSCOPE_STORE_URL": services.settings.store,
        "KERNELSCOPE_LEASE_SECONDS": "1.5",
        "KERNELSCOPE_ENGINE": "dummy",
        "KERNELSCOPE_PRELOAD": "",
    }
    log = services.settings.data_dir / f"worker-{time.monotonic()}.log"
    command = [sys.executable, "-m", "worker"]
    environment = {**os.environ, **own, **environment}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output) as process,
    ):
        try:
            name = str(process.pid)
            until(lambda: any(w.ready and w.id.endswith(name) for w in workers.living(services.redis)), 60)
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something, with housekeeping going on nowhere."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def submit(services: Services, kernels: int = 8, iterations: int = 50) -> str:
    """A job of this many kernels (none of them silent), announced."""
    digest = services.store.put(png(noise(seed=random.getrandbits(30))))  # of its own: the same work is not done twice
    request = ExplainRequest.model_validate(
        {
            "images": [digest],
            "layer": "conv3_1",
            "kernels": [k for k in range(200) if k % 10 != 9][:kernels],
            "iterations": iterations,
        }
    )
    job_id = f"job-{time.monotonic_ns()}"
    submitted = services.transitions.submit(job_id, request, plan(request, 1000), time.time() + 1000)
    for slice_id, queue in submitted.slices:
        announce(services.queue, slice_id, queue)
    return job_id


def job(services: Services, job_id: str) -> Job:
    """The job as it stands."""
    return Records(services.redis).job(job_id)


def finished(services: Services, job_id: str, *, housekeep: bool = False) -> Callable[[], bool]:
    """Whether the job is at its end; housekeeping may be done while waiting."""

    def check() -> bool:
        if housekeep:
            tick(services)
        return job(services, job_id).status.terminal

    return check


def at_attempt(services: Services, job_id: str, attempt: int) -> Callable[[], bool]:
    """Whether the job is at this attempt."""
    return lambda: job(services, job_id).attempt == attempt


def no_lease_left(services: Services) -> Callable[[], bool]:
    """Whether housekeeping has taken back every slice."""

    def check() -> bool:
        tick(services)
        return not services.redis.zcard("ks:leases")

    return check


def test_sigterm_hands_the_slice_back_and_another_worker_goes_on(services: Services) -> None:
    """Nothing fails, finished items are not run again, the exit is quick."""
    job_id = submit(services, kernels=16, iterations=200)
    with worker(services) as first:
        until(lambda: job(services, job_id).progress.completed >= 2)
        begin = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        assert time.monotonic() - begin < 10
    left = job(services, job_id)
    assert left.status is Status.RUNNING
    assert services.transitions.queued() == [f"{job_id}:0"]
    done = {result.index: result for result in left.results}
    with worker(services):
        until(finished(services, job_id))
    ended = job(services, job_id)
    assert ended.status is Status.SUCCEEDED
    assert len(ended.results) == 16
    assert all(ended.results[index] == result for index, result in done.items())
    assert ended.attempt == 1


def test_kill_9_costs_one_lease(services: Services) -> None:
    """Its slice is queued again when the lease runs out, and ends on another worker, once."""
    job_id = submit(services, kernels=16, iterations=200)
    with worker(services) as first:
        until(lambda: job(services, job_id).progress.completed >= 2)
        first.kill()
        first.wait()
    with worker(services):
        until(finished(services, job_id, housekeep=True))
    ended = job(services, job_id)
    assert ended.status is Status.SUCCEEDED
    assert [result.index for result in ended.results] == list(range(16))
    assert ended.attempt == 2


def test_a_slice_whose_worker_dies_each_time_is_failed(services: Services) -> None:
    """After three attempts, with the reason; the worker's death is not taken for the caller's fault."""
    job_id = submit(services, kernels=4, iterations=100_000)
    for attempt in range(1, 4):
        with worker(services) as victim:
            until(at_attempt(services, job_id, attempt))
            victim.kill()
            victim.wait()
        until(no_lease_left(services))
    ended = job(services, job_id)
    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.type == "/problems/attempts-exhausted"
    assert "3 times" in ended.error.detail


def test_a_message_lost_beside_a_dead_worker_s_is_sent_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed to a worker that was killed stays with the broker for an hour, and hides no lost one."""
    job_id = submit(services, kernels=2)
    services.redis.delete("interactive")
    services.redis.hset("unacked", "tag-of-a-dead-worker", "[]")
    monkeypatch.setattr(housekeeping, "FORGOTTEN_AFTER_SECONDS", 3600.0)
    assert housekeeping._lost(services) == []
    monkeypatch.setattr(housekeeping, "FORGOTTEN_AFTER_SECONDS", -1.0)
    assert housekeeping._lost(services) == [f"{job_id}:0"]
    services.redis.lpush("interactive", "a message")
    assert housekeeping._lost(services) == []
    services.redis.delete("unacked")


def test_a_lost_message_is_sent_again(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's lists are wiped; the record remembers."""
    job_id = submit(services, kernels=2)
    services.redis.delete("interactive", "bulk")
    monkeypatch.setattr(housekeeping, "LOST_AFTER_SECONDS", 0.2)
    with worker(services):
        time.sleep(0.5)
        assert job(services, job_id).status is Status.QUEUED
        until(finished(services, job_id, housekeep=True))
    assert job(services, job_id).status is Status.SUCCEEDED


def test_messages_that_are_there_are_not_sent_twice(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long queue is no reason to make it longer."""
    submit(services, kernels=2)
    monkeypatch.setattr(housekeeping, "LOST_AFTER_SECONDS", -1.0)
    for _ in range(3):
        tick(services)
    assert services.redis.llen("interactive") == 1


def test_duplicate_messages_are_harmless(services: Services) -> None:
    """The same slice announced ten times is run once."""
    job_id = submit(services, kernels=2)
    for _ in range(10):
        announce(services.queue, f"{job_id}:0", "interactive")
    with worker(services):
        until(finished(services, job_id))
        until(lambda: services.redis.llen("interactive") == 0)
    assert job(services, job_id).attempt == 1


def test_small_jobs_find_a_place_while_big_ones_wait(services: Services) -> None:
    """Of four places one is for big jobs: a job of ten slices does not take them all."""
    big = submit(services, kernels=160, iterations=300)
    with worker(services, KERNELSCOPE_SLICES="4"):
        until(lambda: job(services, big).progress.completed >= 1)
        small = submit(services, kernels=1)
        until(finished(services, small))
        assert services.redis.zcard("ks:queued:bulk") >= 7  # one that runs, and one or two taken in the same moment
        services.transitions.cancel(big)


def test_a_worker_survives_a_pause_of_redis(services: Services) -> None:
    """Redis says nothing for three seconds; the worker goes on afterwards."""
    with worker(services) as process:
        services.redis.execute_command("CLIENT", "PAUSE", "3000", "ALL")
        time.sleep(3.2)
        job_id = submit(services, kernels=2)
        until(finished(services, job_id, housekeep=True))
        assert job(services, job_id).status is Status.SUCCEEDED
        assert process.poll() is None


def test_one_housekeeper_works_at_a_time(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first lets go."""
    rounds: list[int] = []
    first, second = Housekeeper(services), Housekeeper(services)
    for number, keeper in ((1, first), (2, second), (1, first)):
        monkeypatch.setattr(housekeeping, "tick", lambda _, number=number: rounds.append(number))
        keeper.round()
    assert rounds == [1, 1]
    first.release()
    monkeypatch.setattr(housekeeping, "tick", lambda _: rounds.append(2))
    second.round()
    assert rounds == [1, 1, 2]
    second.release()
