"""The life cycle of a worker: stopped, killed, with duplicate messages, and with lost messages."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis

from api.housekeeping import tasks
from api.housekeeping.tasks import Announcer, Reaper
from api.services import Services
from shared import workers
from shared.errors import JobEnded
from shared.jobs import Caller
from shared.queue import announce
from shared.schemas import ExplainRequest, Status, WholeJob, plan
from shared.settings import Settings
from tests.conftest import noise, png, refusing

ROOT = Path(__file__).parents[2]
SECONDS = 0.05  # of one dummy item: 50 iterations of a millisecond


@pytest.fixture
def services(settings: Settings, redis: Redis) -> Iterator[Services]:
    """The API's side, with short leases."""
    services = Services.open(settings.model_copy(update={"lease_seconds": 1.5}))
    yield services
    asyncio.run(services.close())


@contextmanager
def worker(services: Services, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process with the dummy engine, once it is ready."""
    with started(services, [sys.executable, "-m", "worker"], **environment) as process:
        name = str(process.pid)
        until(lambda: any(w.ready and w.id.endswith(name) for w in workers.living(services.redis)), 60)
        yield process


@contextmanager
def started(services: Services, command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a worker's settings, which is killed at the end."""
    own = {
        "KERNELSCOPE_REDIS_URL": services.settings.redis_url.get_secret_value(),
        "KERNELSCOPE_STORE_URL": services.settings.store,
        "KERNELSCOPE_LEASE_SECONDS": "1.5",
        "KERNELSCOPE_ENGINE": "dummy",
        "KERNELSCOPE_PRELOAD": "",
    }
    log = services.settings.data_dir / f"worker-{time.monotonic()}.log"
    environment = {**os.environ, **own, **environment}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def tick(services: Services) -> None:
    """Housekeeping of the slices of dead workers, once."""
    Reaper(services).round()
    Announcer(services).round()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for a condition, without housekeeping."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def submit(services: Services, kernels: int = 8, iterations: int = 50, owner: str = "") -> str:
    """An announced job with this many kernels, none of them silent."""
    job_id = f"job-{time.monotonic_ns()}"
    digest = services.store.put(job_id, png(noise(seed=random.getrandbits(30))))  # of its own: so is the work
    request = ExplainRequest.model_validate(
        {
            "images": [digest],
            "layer": "conv3_1",
            "kernels": [k for k in range(200) if k % 10 != 9][:kernels],
            "iterations": iterations,
        }
    )
    submitted = services.transitions.submit(job_id, request, plan(request, 1000), 1000, caller=Caller(owner))
    for slice_id, queue in submitted.slices:
        announce(services.queue, slice_id, queue)
    return job_id


def job(services: Services, job_id: str) -> WholeJob:
    """The present job."""
    return services.records.whole(job_id)


def finished(services: Services, job_id: str, *, housekeep: bool = False) -> Callable[[], bool]:
    """Whether the job has ended; housekeeping may run while waiting."""

    def check() -> bool:
        if housekeep:
            tick(services)
        return job(services, job_id).status.terminal

    return check


def at_attempt(services: Services, job_id: str, attempt: int) -> Callable[[], bool]:
    """Whether the job is at this attempt."""
    return lambda: job(services, job_id).attempt == attempt


def no_lease_left(services: Services) -> Callable[[], bool]:
    """Whether housekeeping has requeued every slice."""

    def check() -> bool:
        tick(services)
        return not services.redis.zcard("ks:leases")

    return check


def test_sigterm_releases_the_slice_and_another_worker_continues(services: Services) -> None:
    """Nothing fails, committed items are not run again, and the exit is quick."""
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
    """Its slice is requeued when the lease expires, and ends on another worker, once."""
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
    """After three attempts, with the reason; the worker's death is not reported as the caller's error."""
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


def test_a_lost_message_is_sent_again(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's lists are deleted; the record still has the jobs."""
    job_id = submit(services, kernels=2)
    services.redis.delete("interactive", "bulk")
    monkeypatch.setattr(tasks, "LOST_AFTER_SECONDS", 0.2)
    with worker(services):
        time.sleep(0.5)
        assert job(services, job_id).status is Status.QUEUED
        until(finished(services, job_id, housekeep=True))
    assert job(services, job_id).status is Status.SUCCEEDED


def test_messages_that_are_there_are_not_sent_twice(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long queue does not get more messages."""
    submit(services, kernels=2)
    monkeypatch.setattr(tasks, "LOST_AFTER_SECONDS", -1.0)
    for _ in range(3):
        tick(services)
    assert services.redis.llen("interactive") == 1


def test_duplicate_messages_are_harmless(services: Services) -> None:
    """The same slice announced ten times runs once."""
    job_id = submit(services, kernels=2)
    for _ in range(10):
        announce(services.queue, f"{job_id}:0", "interactive")
    with worker(services):
        until(finished(services, job_id))
        until(lambda: services.redis.llen("interactive") == 0)
    assert job(services, job_id).attempt == 1


def test_many_jobs_of_one_key_do_not_delay_another_key_s(services: Services) -> None:
    """By no more than two slices, however many wait, on a worker with one slot."""
    many = [submit(services, kernels=1, iterations=20, owner="many") for _ in range(200)]
    with worker(services, KERNELSCOPE_SLICES="1"):
        until(lambda: services.redis.zcard("ks:queued:interactive") < len(many))
        before = services.redis.zcard("ks:queued:interactive")
        one = submit(services, kernels=1, iterations=20, owner="one")
        until(finished(services, one))
        # One that ran by then and two more; and one that is taken before this is asked.
        assert before - services.redis.zcard("ks:queued:interactive") <= 4
        for job_id in many:
            with suppress(JobEnded):
                services.transitions.cancel(job_id)


def test_small_jobs_find_a_place_while_big_ones_wait(services: Services) -> None:
    """One of four slots is for big jobs: a job of ten slices does not occupy all of them."""
    big = submit(services, kernels=160, iterations=300)
    with worker(services, KERNELSCOPE_SLICES="4"):
        until(lambda: job(services, big).progress.completed >= 1)
        small = submit(services, kernels=1)
        until(finished(services, small))
        assert services.redis.zcard("ks:queued:bulk") >= 7  # one that runs, and one or two taken in the same moment
        services.transitions.cancel(big)


def test_a_worker_survives_a_pause_of_redis(services: Services) -> None:
    """Redis does not respond for three seconds; the worker continues afterwards."""
    with worker(services) as process:
        services.redis.execute_command("CLIENT", "PAUSE", "3000", "ALL")
        time.sleep(3.2)
        job_id = submit(services, kernels=2)
        until(finished(services, job_id, housekeep=True))
        assert job(services, job_id).status is Status.SUCCEEDED
        assert process.poll() is None


def test_a_worker_survives_a_redis_that_refuses_writes(services: Services) -> None:
    """It waits with heartbeats, as for an unavailable Redis; then it continues without a restart."""
    with worker(services) as process:
        with refusing(services.redis):
            time.sleep(3)
            assert process.poll() is None
        job_id = submit(services, kernels=2)
        until(finished(services, job_id, housekeep=True))
        assert job(services, job_id).status is Status.SUCCEEDED
        assert process.poll() is None


def test_an_error_of_the_consumer_is_no_orderly_end(services: Services) -> None:
    """The supervisor sees it from the exit code, and counts it."""
    broken = "def start(*_): raise RuntimeError('a bug')\n"
    program = (
        f"from worker.consumer import Consumer\n{broken}Consumer.start = start\nfrom worker.app import main\nmain()"
    )
    with started(services, [sys.executable, "-c", program]) as process:
        assert process.wait(60) == 1
    (log,) = services.settings.data_dir.glob("worker-*.log")
    assert "Unrecoverable error: RuntimeError('a bug')" in log.read_text()
