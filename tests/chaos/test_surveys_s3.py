"""A survey on two workers with an S3 store: created, read, explained, deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernelscope.client import Client, NotFound
from shared.drawings import scene
from shared.store import BlobStore
from tests.chaos.conftest import Plant
from tests.chaos.s3 import planted
from tests.conftest import FULL, png

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500 if FULL else 300)]

IMAGES = 10_000 if FULL else 600
SENT = 200  # in one request
LAYERS = ["conv1_2", "conv3_1"]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Redis, a SeaweedFS, API and housekeeping, and two workers."""
    with planted(tmp_path, monkeypatch, "first", "second") as plant:
        yield plant


def test_a_survey_from_upload_to_deletion(plant: Plant, record_property: Callable[[str, object], None]) -> None:
    """The image with the most magenta activates the magenta kernel most; deletion leaves no object."""
    begin = time.monotonic()
    with Client(plant.url, timeout=120) as client:
        dataset = client.create_dataset("scenes")
        for start in range(0, IMAGES, SENT):
            client.add_images(dataset.id, {f"{number}.png": _image(number) for number in range(start, start + SENT)})
        filled = time.monotonic()
        job = client.survey(dataset.id, model="vgg_mini", layers=LAYERS).wait(1200).check()
        surveyed = time.monotonic()
        page = client.kernel("vgg_mini", LAYERS[0], 3)
        looked = time.monotonic()
        assert page.survey.surveyed == page.survey.images == IMAGES
        assert sum(one.images for one in page.histogram) == IMAGES
        peaks = [one.activation for one in page.top]
        assert peaks == sorted(peaks, reverse=True)
        crop = Image.open(BytesIO(client.file(page.top[0].crop)))
        assert crop.format == "WEBP"
        (explaining,) = client.explain_kernels(job.id, LAYERS[0], [3], images=2)
        explaining.wait(120).check()
        made = client.kernel("vgg_mini", LAYERS[0], 3, job.id)
        assert [one.picture is not None for one in made.top[:3]] == [True, True, False]
        assert client.survey_csv(job.id).count("\n") == 1 + sum(
            len(client.layer_kernels("vgg_mini", layer, job.id).kernels) for layer in LAYERS
        )
        client.delete_survey(job.id)
        client.delete_dataset(dataset.id)
        with pytest.raises(NotFound):
            client.kernel("vgg_mini", LAYERS[0], 3, job.id)
    store = BlobStore(plant.environment["KERNELSCOPE_STORE_URL"])
    for folder in ("datasets", "surveys"):
        assert [name.partition("/")[0] for name in store.names(folder)] == ["removed"]
    for name, value in (("fill", filled - begin), ("survey", surveyed - filled), ("page", looked - surveyed)):
        record_property(f"{name}_seconds", round(value, 2))


def _image(number: int) -> bytes:
    """No two are the same."""
    pixels = np.array(scene(number % 30, 96).image)
    pixels[number // 900, number // 10 % 90] = (255, 0, 255)
    pixels[95 - number % 10, 95] = (0, 255, 0)
    return png(Image.fromarray(pixels))
