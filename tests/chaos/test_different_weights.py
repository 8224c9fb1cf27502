"""Workers that have different networks."""

from __future__ import annotations

import signal
import time

import pytest

from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import Plant, until, whole

pytestmark = pytest.mark.chaos

LAYERS = {"vgg16": "conv3_3", "vgg19": "conv5_1"}


def test_each_slice_goes_to_a_worker_that_has_what_it_needs(plant: Plant) -> None:
    """Two workers with a network each: nothing fails, nothing is started twice, and no job waits for long."""
    for model in LAYERS:
        plant.start_worker(model, "tests.chaos.doubles", "only", model)
    begin = time.monotonic()
    jobs = [plant.submit("1,2", model=model, layer=LAYERS[model], iterations="20") for model in [*LAYERS] * 10]
    for job in plant.wait(jobs, 60):
        whole(job, 2)
        assert job.attempt == 1
    assert time.monotonic() - begin < 20
    with connect(plant.redis_url, patience=10) as redis:
        left = [key for key in redis.keys("ks:*") if key.startswith(("ks:waiting", "ks:turns", "ks:buckets"))]
    assert left == []


def test_a_job_without_a_worker_for_its_network_waits_and_says_why(plant: Plant) -> None:
    """Its worker stops in mid-job; the other one does not claim it, and it continues once there is a worker for it."""
    for model in LAYERS:
        plant.start_worker(model, "tests.chaos.doubles", "only", model)
    job_id = plant.submit("1,2,3,4", model="vgg19", layer="conv5_1", iterations="2000")
    until(lambda: plant.job(job_id).progress.completed, 30)
    plant.kill("vgg19", signal.SIGTERM)
    plant.processes["vgg19"].wait(30)
    until(lambda: plant.job(job_id).waiting_for, 10)
    job = plant.job(job_id)
    assert job.waiting_for == "a worker with vgg19 conv5_1: none of the connected ones has it"
    assert (job.status, job.failed_items) == (Status.RUNNING, 0)
    whole(plant.wait([plant.submit("1", model="vgg16", layer="conv3_3", iterations="20")], 30)[0], 1)
    plant.start_worker("vgg19", "tests.chaos.doubles", "only", "vgg19")
    (job,) = plant.wait([job_id], 60)
    whole(job, 4)
    assert (job.attempt, job.waiting_for) == (1, None)
