"""Sixteen pictures of fifty megapixels in one job: a worker decodes one after the other."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.chaos.conftest import Plant
from tests.contract.conftest import Memory
from tests.contract.pictures import bombs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

MOST_MB = 1_500  # more than the worker had before


def test_a_worker_decodes_one_at_a_time(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """The job succeeds, the worker lives, and its memory is that of one picture."""
    plant.start_worker("worker")
    memory = Memory(plant, "worker")
    files = [("image", (f"{number}.png", data)) for number, data in enumerate(bombs()[:8] * 2)]
    fields = {"model": "vgg_mini", "layer": "conv2_1"}
    with httpx.Client(base_url=plant.url, timeout=300) as client:
        answer = client.post("/activations", files=files, data=fields)
    assert answer.status_code == 202, answer.text
    (job,) = plant.wait([answer.json()["id"]], 300)
    record_property("memory_mb", {"start": round(memory.start), "peak": round(memory.peak)})
    assert job.status == "succeeded"
    assert len(job.results) == 16
    assert plant.processes["worker"].poll() is None
    assert memory.peak - memory.start < MOST_MB
