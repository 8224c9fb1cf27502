"""A link in the weights folder whose file does not exist, as where only the folder of links is mounted."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from shared.schemas import Status
from shared.workers import HEARTBEAT_LIFETIME
from tests.chaos.conftest import running

pytestmark = pytest.mark.chaos


def test_only_its_network_is_unavailable(tmp_path: Path) -> None:
    """The worker sends heartbeats and works, also one that is started later; `GET /models` gives the reason."""
    with running(tmp_path) as plant:
        plant.start_worker("worker")
        link = tmp_path / "weights" / "vgg11.pth"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("/nowhere/vgg11.pth")
        time.sleep(HEARTBEAT_LIFETIME + 1)
        assert plant.worker_ready("worker")
        plant.kill("worker")
        plant.start_worker("later")
        model = httpx.get(f"{plant.url}/models/vgg11").json()
        assert model["available"] is False
        assert "vgg11.pth: cannot be read (No such file or directory)" in model["reason"]
        (job,) = plant.wait([plant.submit("1")], 60)
        assert job.status is Status.SUCCEEDED
