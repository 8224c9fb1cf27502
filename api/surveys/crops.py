"""Crops of images and of X̂ to the receptive field of one position of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from io import BytesIO

from PIL import Image
from starlette.concurrency import run_in_threadpool

from api.pictures.figures import stretched
from api.services import Services
from shared import workers
from shared.catalogue import Layer
from shared.errors import ArtifactNotFound, JobNotFound
from shared.images import Frame
from shared.jobs.ids import JOB_ID
from shared.surveys.store import SurveyFacts

Box = tuple[int, int, int, int]  # left, top, right, bottom

SMALLEST, LARGEST = 96, 224  # sides of the files, in pixels
QUALITY = 88


def box_of(layer: Layer, frame: Frame, place: tuple[int, int]) -> Box:
    """The receptive field of a position (row, column), clipped to the input, in pixels of the network's input."""
    (top, bottom), (left, right) = (
        _extent(layer, position, side, positions)
        for position, side, positions in zip(place, frame[:2], (layer.height, layer.width), strict=True)
    )
    return left, top, right, bottom


def _extent(layer: Layer, position: int, side: int, positions: int) -> tuple[int, int]:
    """The first pixel, and the one after the last; at least one pixel."""
    even = (position + 0.5) * side / positions  # for workers of an earlier version, which do not report it
    middle = even if layer.middle is None else layer.middle + position * layer.stride
    first = math.floor(middle - layer.receptive_field / 2 + 0.5)
    start = min(max(0, first), side - 1)
    return start, max(start + 1, min(side, first + layer.receptive_field))


async def image_crop(
    services: Services, owner: str, survey_id: str, layer: str, number: int, place: tuple[int, int]
) -> bytes:
    """A crop of an image of a survey, as a WebP file. Stored beside the image, and deleted with it.

    Raises:
        SurveyNotFound, DataSetNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
    """
    crop = await run_in_threadpool(_find, services, owner, survey_id, layer, place)
    await run_in_threadpool(services.datasets.collection.facts, crop.facts.dataset, owner)
    path = f"datasets/{crop.facts.dataset}/crops/{survey_id}/{number}-{'-'.join(map(str, crop.box))}.webp"
    if data := await run_in_threadpool(services.store.get_at, path):
        return data

    def draw() -> bytes:
        part = _draw_crop(services, owner, crop, number)
        if crop.is_top(services, number):  # the others are too many to store
            services.store.put_at(path, part)
        return part

    return await services.pictures.pool.run(owner, draw)


async def optimized_crop(
    services: Services, owner: str, survey_id: str, layer: str, result: tuple[str, int], place: tuple[int, int]
) -> bytes:
    """A crop of X̂, a result of a job, as a WebP file. Its contrast is stretched, since X̂ is faint in deep layers.

    Raises:
        SurveyNotFound, JobNotFound, JobExpired, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
    """
    crop = await run_in_threadpool(_find, services, owner, survey_id, layer, place)
    if not JOB_ID.fullmatch(result[0]):
        raise JobNotFound(f"there is no job {result[0][:64]}")
    await services.polling.check(result[0], owner)
    return await services.pictures.pool.run(owner, partial(_draw_optimized, services, *result, crop.box))


@dataclass(frozen=True)
class _Crop:
    survey_id: str
    facts: SurveyFacts
    layer: Layer
    frame: Frame
    place: tuple[int, int]

    @property
    def box(self) -> Box:
        """Its pixels in the network's input."""
        return box_of(self.layer, self.frame, self.place)

    def is_top(self, services: Services, number: int) -> bool:
        """Whether this place of this image is among those that activate a kernel most."""
        whole = services.surveys.layer(self.survey_id, self.layer.name)
        place = self.place[0] * self.layer.width + self.place[1]
        return whole is not None and bool(((whole.tally.top == number) & (whole.tally.places == place)).any())


def _find(services: Services, owner: str, survey_id: str, layer: str, place: tuple[int, int]) -> _Crop:
    facts = services.surveys.collection.facts(survey_id, owner)
    network = workers.network(services.redis, facts.model)
    known = network.layer(layer)
    row, column = place
    if not (0 <= row < known.height and 0 <= column < known.width):
        raise ArtifactNotFound(f"the maps of {known.name} have {known.height} × {known.width} positions")
    return _Crop(survey_id, facts, known, network.frame, place)


def _draw_crop(services: Services, owner: str, crop: _Crop, number: int) -> bytes:
    if not 0 <= number < crop.facts.images:
        raise ArtifactNotFound(f"survey {crop.survey_id} has {crop.facts.images:,} images, numbered from 0")
    digest, _ = services.surveys.image(crop.survey_id, number)
    used = services.surveys.used(crop.survey_id)
    fed = used.weights.preprocessing if used else None
    data = services.datasets.image(crop.facts.dataset, digest, owner)
    image = services.pictures.files.fitted(data, crop.frame, fed.resize if fed else "squash")
    return _file(image.crop(crop.box))


def _draw_optimized(services: Services, job_id: str, item: int, box: Box) -> bytes:
    head, result, blobs = services.records.result(job_id, item)
    if "optimized.npy" not in blobs:
        raise ArtifactNotFound(f"result {item} of job {job_id} has no X̂: it {result.status}")
    return _file(stretched(services.pictures.files.evidence(head, (result, blobs)).x).crop(box))


def _file(part: Image.Image) -> bytes:
    """A WebP file whose longer side is between `SMALLEST` and `LARGEST` pixels."""
    longest = max(part.size)
    side = min(LARGEST, max(SMALLEST, longest))
    size = (max(1, round(part.width * side / longest)), max(1, round(part.height * side / longest)))
    larger = side > longest
    shown = part.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
    file = BytesIO()
    shown.convert("RGB").save(file, "WEBP", quality=QUALITY, lossless=larger)
    return file.getvalue()
