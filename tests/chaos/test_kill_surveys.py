"""kill −9 of a worker in the middle of a survey."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernelscope.client import Client
from shared.drawings import scene
from shared.schemas import Status
from tests.chaos.conftest import Plant, running, until
from tests.conftest import FULL, png

pytestmark = pytest.mark.chaos

IMAGES = 2400 if FULL else 800  # in parts of 256
KILLS = 10 if FULL else 2
LAYERS = ["conv1_1", "conv2_2", "conv3_1"]


def test_kill_9_changes_no_number(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """The survey ends with the same results as an undisturbed one, to the last bit."""
    moments = random.Random(0)
    with running(tmp_path / "plant", KERNELSCOPE_MAX_ATTEMPTS="50", KERNELSCOPE_LEASE_SECONDS="5") as plant:
        plant.start_worker("worker", supervised=True)
        with Client(plant.url) as client:
            dataset = _filled(client)
            calm = client.survey(dataset, model="vgg_mini", layers=LAYERS).wait(300)
            assert calm.status is Status.SUCCEEDED
            seconds = (calm.finished_at - calm.started_at).total_seconds()  # type: ignore[operator]
            killed = client.survey(dataset, model="vgg_mini", layers=LAYERS)
            kills, interrupted = 0, 0
            while kills < KILLS:
                until(partial(_begun, client, killed.id), 60)
                time.sleep(moments.uniform(0, seconds / 2))
                before = client.job(killed.id)
                if before.status.terminal:  # the next kills are of another one
                    _the_same(plant, calm.id, killed.id)
                    killed = client.survey(dataset, model="vgg_mini", layers=LAYERS)
                    continue
                plant.kill("worker")
                kills += 1
                interrupted += before.progress.fraction < 1
            killed.wait(300)
            assert killed.status is Status.SUCCEEDED, killed.error
            assert client.job(killed.id).attempt > 1
        _the_same(plant, calm.id, killed.id)
    for name, value in (("kills", kills), ("in_mid_survey", interrupted), ("calm_seconds", round(seconds, 1))):
        record_property(name, value)
    assert interrupted


def _begun(client: Client, job_id: str) -> bool:
    return client.job(job_id).status is not Status.QUEUED


def _filled(client: Client) -> str:
    """Drawn scenes, each with a dot at a place of its own: no two are the same."""
    dataset = client.create_dataset("scenes")
    for start in range(0, IMAGES, 200):
        client.add_images(dataset.id, {f"{number}.png": _image(number) for number in range(start, start + 200)})
    return dataset.id


def _image(number: int) -> bytes:
    pixels = np.array(scene(number % 30, 96).image)
    pixels[number // 90, number % 90] = (255, 0, 255)
    return png(Image.fromarray(pixels))


def _the_same(plant: Plant, one: str, other: str) -> None:
    first, second = (_known(plant, survey) for survey in (one, other))
    assert first
    assert first == second


def _known(plant: Plant, survey: str) -> Mapping[str, bytes]:
    """The stored results of the layers and parts."""
    folder = plant.folder / "store" / "surveys" / survey
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for part in ("parts", "layers")
        for file in (folder / part).rglob("*.npz")
    }
