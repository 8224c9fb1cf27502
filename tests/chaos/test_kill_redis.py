"""kill −9 of Redis under load, and its restart on the same append-only file."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest

from kernelscope.client import Client, ServerError, ServerUnreachable
from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, picture, until, whole
from tests.conftest import FULL

pytestmark = pytest.mark.chaos


class Load:
    """Clients that submit one job after another and record the time and status of each response."""

    def __init__(self, plant: Plant, clients: int) -> None:
        self.plant = plant
        self.accepted: list[str] = []
        self.answers: list[tuple[float, float, int]] = []  # when, how long it took, status
        self.stop = Event()
        self.threads = [Thread(target=self._client) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Stop submitting."""
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _client(self) -> None:
        with Client(self.plant.url, patience=0) as client:
            while not self.stop.wait(0.2):
                begin = time.monotonic()
                try:
                    own: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_1", "kernels": "1"}
                    self.accepted.append(client.explain([picture()], **own, iterations=20).id)
                    status = 202
                except ServerError as error:
                    status = error.problem.status
                except ServerUnreachable:
                    status = 0
                self.answers.append((begin, time.monotonic() - begin, status))


def test_kill_9_of_redis_under_load(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """No accepted job is lost; meanwhile the API says 503 within a second; it is ready again within 10 s."""
    plant.start_worker("worker", supervised=True)
    load = Load(plant, clients=3)
    slowest_refusal, slowest_return = 0.0, 0.0
    for _ in range(5 if FULL else 1):
        time.sleep(3)
        plant.kill("redis")
        time.sleep(0.1)
        down = time.monotonic()
        until(lambda: plant.ready() == 503, 3)
        time.sleep(3)
        up = time.monotonic()
        refused = [took for when, took, status in list(load.answers) if down < when < up and status != 202]
        assert {status for when, _, status in list(load.answers) if down < when < up} == {503}
        slowest_refusal = max(slowest_refusal, *refused)
        plant.start_redis()
        slowest_return = max(slowest_return, until(lambda: plant.ready() == 200, 30))
    time.sleep(3)
    load.end()
    for job in plant.wait(load.accepted, 180):
        whole(job, 1)
    assert plant.processes["worker"].poll() is None
    record_property("accepted", len(load.accepted))
    record_property("slowest_503_seconds", round(slowest_refusal, 2))
    record_property("ready_again_seconds", round(slowest_return, 2))
    assert slowest_refusal <= 1
    assert slowest_return <= 10


def test_a_redis_that_does_not_respond(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """It is suspended: connections stay open without a response. The API still returns 503 within a second."""
    plant.kill("redis", signal.SIGSTOP)
    slowest = 0.0
    until(lambda: plant.ready() == 503, 3)  # readiness is checked once a second
    for _ in range(3):
        begin = time.monotonic()
        assert plant.ready() == 503
        with Client(plant.url, patience=0) as client, pytest.raises(ServerError) as refused:
            client.explain([picture()], layer="conv1_1", kernels="1")
        assert refused.value.problem.status == 503
        slowest = max(slowest, (time.monotonic() - begin) / 2)
    plant.kill("redis", signal.SIGCONT)
    until(lambda: plant.ready() == 200, 10)
    record_property("slowest_503_seconds", round(slowest, 2))
    assert slowest <= 1.2


def test_outages_longer_than_a_lease_cost_no_attempt(plant: Plant) -> None:
    """Redis is away for 25 s, twice, while jobs are running: they continue, and no slice is suspected."""
    plant.start_worker("worker")
    jobs = [plant.submit("1,2,3", iterations="90000") for _ in range(2)]
    until(lambda: all(plant.job(job_id).status is Status.RUNNING for job_id in jobs), 20)
    for _ in range(2):
        plant.kill("redis", signal.SIGSTOP)
        time.sleep(25)
        plant.kill("redis", signal.SIGCONT)
        until(lambda: plant.ready() == 200, 30)
        time.sleep(5)
    for job_id in jobs:
        job = plant.job(job_id)
        assert (job.status, job.attempt) == (Status.RUNNING, 1)
    with connect(plant.redis_url, patience=10) as redis:
        reported = [redis.hmget(f"ks:slice:{job_id}:0", "strikes", "company") for job_id in jobs]
    assert all(int(count or 0) == 0 for pair in reported for count in pair)
