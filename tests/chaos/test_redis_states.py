"""A Redis that responds with errors for a while: every process waits, and jobs succeed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, until, whole
from tests.conftest import FULL
from tests.redis_states import STATES, Operator, options

pytestmark = pytest.mark.chaos

OUTAGE_SECONDS = 8
TRIED = STATES if FULL else ("MISCONF", "READONLY", "BUSY", "LOADING")  # the API's tests try all of them


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """With a worker that only waits, whose Redis can be put into any state; all outages are its own."""
    plant = Plant(tmp_path_factory.mktemp("plant"), KERNELSCOPE_ENGINE="dummy", KERNELSCOPE_PRELOAD="")
    try:
        plant.start_redis(options=options())
        plant.start_service()
        plant.start_worker("worker")
        yield plant
    finally:
        plant.close()


def goes_on(plant: Plant, accepted: list[str]) -> None:
    """Everything is ready again within seconds, no process has ended, and accepted and new jobs succeed."""
    until(lambda: plant.ready() == 200, 10)
    until(lambda: plant.worker_ready("worker"), 10)
    for job in plant.wait([*accepted, plant.submit("1,2")], 60):
        whole(job, 2)
    assert {name for name, process in plant.processes.items() if process.poll() is not None} == set()


@pytest.mark.parametrize("code", TRIED)
def test_every_process_survives(plant: Plant, code: str) -> None:
    """With a running job and a queued one."""
    accepted = [plant.submit("1,2", iterations="6000") for _ in range(2)]
    until(lambda: plant.job(accepted[0]).status is Status.RUNNING, 20)
    state, _ = STATES[code]
    with closing(Operator.of(plant.redis_url)) as operator, state(operator):
        time.sleep(OUTAGE_SECONDS)
    goes_on(plant, accepted)
    assert "Frequent restarts" not in (plant.folder / "worker.log").read_text()  # ten lines a second, for hours


def test_a_restart_on_a_large_file(plant: Plant) -> None:
    """Redis is killed and restarted on an append-only file that takes ten seconds to load."""
    accepted = [plant.submit("1,2", iterations="6000")]
    with connect(plant.redis_url, patience=10) as redis, redis.pipeline(transaction=False) as pipe:
        for number in range(10_000):
            pipe.set(f"filler:{number}", "")
        pipe.execute()
    plant.kill("redis")
    plant.start_redis(options=["--key-load-delay", "1000"], wait=False)
    time.sleep(2)
    assert plant.ready() == 503
    until(plant.redis_answers, 60)
    goes_on(plant, accepted)
