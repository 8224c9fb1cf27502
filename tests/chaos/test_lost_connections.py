"""All connections to Redis are lost several times within seconds, as behind a load balancer that restarts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kernelscope.client import Client
from shared.jobs import connect
from shared.schemas import Status
from tests.chaos.conftest import picture, running

pytestmark = pytest.mark.chaos


def test_jobs_are_followed_and_succeed_soon_afterwards(tmp_path: Path) -> None:
    """Within ten seconds: one that runs meanwhile, and one that is submitted at once; no process is restarted."""
    with running(tmp_path) as plant, connect(plant.redis_url) as redis, Client(plant.url) as client:
        plant.start_worker("worker", KERNELSCOPE_ENGINE="dummy")
        options: dict[str, Any] = {"layer": "conv2_1", "model": "vgg_mini", "kernels": [1]}
        before = client.explain([picture()], **options, iterations=6000)
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                redis.client_kill_filter(_type=kind, skipme=True)
            time.sleep(0.6)
        begin = time.monotonic()
        after = client.explain([picture()], **options, iterations=10)
        for job in (before, after):
            statuses = [event.status for event in job.events() if hasattr(event, "status")]
            assert statuses[-1] is Status.SUCCEEDED
        assert time.monotonic() - begin < 10
        assert [name for name, process in plant.processes.items() if process.poll() is not None] == []
