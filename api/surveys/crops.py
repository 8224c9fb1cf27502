"""Parts of images, and of X̂, that one position of a layer sees."""

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
from shared.surveys.store import Facts

Box = tuple[int, int, int, int]  # left, top, right, bottom

SMALLEST, LARGEST = 96, 224  # sides of the files, in pixels
QUALITY = 88


def box_of(layer: Layer, frame: Frame, place: tuple[int, int]) -> Box:
    """What a position (row, column) sees, in pixels of the network's input: its receptive field, cut at the edge."""
    (top, bottom), (left, right) = (
        _seen(layer, position, side, positions)
        for position, side, positions in zip(place, frame[:2], (layer.height, layer.width), strict=True)
    )
    return left, top, right, bottom


def _seen(layer: Layer, position: int, side: int, positions: int) -> tuple[int, int]:
    """The first pixel, and the one behind the last; one at least."""
    even = (position + 0.5) * side / positions  # where a worker of an earlier version does not tell
    middle = even if layer.middle is None else layer.middle + position * layer.stride
    first = math.floor(middle - layer.receptive_field / 2 + 0.5)
    start = min(max(0, first), side - 1)
    return start, max(start + 1, min(side, first + layer.receptive_field))


async def crop_of(
    services: Services, owner: str, survey_id: str, layer: str, number: int, place: tuple[int, int]
) -> bytes:
    """Of an image of a survey, a WebP file. It is kept beside the image, and goes with it.

    Raises:
        SurveyNotFound, DataSetNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
    """
    cut = await run_in_threadpool(_checked, services, owner, survey_id, layer, place)
    await run_in_threadpool(services.datasets.shelf.facts, cut.facts.dataset, owner)
    kept = f"datasets/{cut.facts.dataset}/crops/{survey_id}/{number}-{'-'.join(map(str, cut.box))}.webp"
    if data := await run_in_threadpool(services.store.get_at, kept):
        return data

    def draw() -> bytes:
        part = _drawn(services, owner, cut, number)
        if cut.top(services, number):  # others are not kept: there are very many
            services.store.put_at(kept, part)
        return part

    return await services.pictures.pool.run(owner, draw)


async def picture_of(
    services: Services, owner: str, survey_id: str, layer: str, result: tuple[str, int], place: tuple[int, int]
) -> bytes:
    """Of X̂, the result of a job, with its contrast stretched: in deep layers it is faint. A WebP file.

    Raises:
        SurveyNotFound, JobNotFound, JobExpired, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
    """
    cut = await run_in_threadpool(_checked, services, owner, survey_id, layer, place)
    if not JOB_ID.fullmatch(result[0]):
        raise JobNotFound(f"there is no job {result[0][:64]}")
    await services.polling.check(result[0], owner)
    return await services.pictures.pool.run(owner, partial(_drawn_picture, services, *result, cut.box))


@dataclass(frozen=True)
class _Cut:
    survey_id: str
    facts: Facts
    layer: Layer
    frame: Frame
    place: tuple[int, int]

    @property
    def box(self) -> Box:
        """Of the image."""
        return box_of(self.layer, self.frame, self.place)

    def top(self, services: Services, number: int) -> bool:
        """Whether a kernel is activated most by this image, and there."""
        whole = services.surveys.layer(self.survey_id, self.layer.name)
        place = self.place[0] * self.layer.width + self.place[1]
        return whole is not None and bool(((whole.tally.top == number) & (whole.tally.places == place)).any())


def _checked(services: Services, owner: str, survey_id: str, layer: str, place: tuple[int, int]) -> _Cut:
    facts = services.surveys.shelf.facts(survey_id, owner)
    network = workers.network(services.redis, facts.model)
    known = network.layer(layer)
    row, column = place
    if not (0 <= row < known.height and 0 <= column < known.width):
        raise ArtifactNotFound(f"maps of {known.name} have {known.height} × {known.width} positions")
    return _Cut(survey_id, facts, known, network.frame, place)


def _drawn(services: Services, owner: str, cut: _Cut, number: int) -> bytes:
    if not 0 <= number < cut.facts.images:
        raise ArtifactNotFound(f"survey {cut.survey_id} has {cut.facts.images:,} images, numbered from 0")
    digest, _ = services.surveys.image(cut.survey_id, number)
    used = services.surveys.used(cut.survey_id)
    fed = used.weights.preprocessing if used else None
    data = services.datasets.image(cut.facts.dataset, digest, owner)
    image = services.pictures.files.fitted(data, cut.frame, fed.resize if fed else "squash")
    return _file(image.crop(cut.box))


def _drawn_picture(services: Services, job_id: str, item: int, box: Box) -> bytes:
    head, result, blobs = services.records.result(job_id, item)
    if "optimized.npy" not in blobs:
        raise ArtifactNotFound(f"result {item} of job {job_id} has no X̂: it {result.status}")
    return _file(stretched(services.pictures.files.evidence(head, (result, blobs)).x).crop(box))


def _file(part: Image.Image) -> bytes:
    """Its longer side no smaller than a person can see, and no larger than it needs to be."""
    longest = max(part.size)
    side = min(LARGEST, max(SMALLEST, longest))
    size = (max(1, round(part.width * side / longest)), max(1, round(part.height * side / longest)))
    larger = side > longest
    shown = part.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
    file = BytesIO()
    shown.convert("RGB").save(file, "WEBP", quality=QUALITY, lossless=larger)
    return file.getvalue()
