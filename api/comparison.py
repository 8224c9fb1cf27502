"""What a job's images have in common, kernel by kernel: in numbers and as a contact sheet."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from api import consistency, figures, sheets
from api.consistency import Description
from api.evidence import evidence
from api.services import Services
from shared import catalogue, images
from shared.errors import ArtifactNotFound
from shared.schemas import OPTIMIZED, ItemResult, Job

MOST_SERIES = 16  # kernels and methods that are compared


class Agreement(BaseModel):
    """How far one kernel's pictures by one method agree."""

    kernel: int
    method: str
    alpha: float
    beta: float
    images: int = Field(description="on how many images it was compared")
    consistency: float | None = Field(
        description="mean likeness of its X̂ on different images, at most 1; null for fewer than two images"
    )
    discrimination: float | None = Field(
        description="how often its X̂ is more like its own on another image than like another kernel's on the same "
        "image: 0.5 by chance, 1 at best; null where there is nothing to compare"
    )


class Consistency(BaseModel):
    """Whether kernels see the same thing in all of a job's images; definitions in docs/evidence.md."""

    final: bool = Field(description="whether the job has ended; until then this is of what is there")
    series: list[Agreement]
    originals: float | None = Field(description="mean likeness of the images themselves, to compare with")
    left_out: str = Field(description="what was too much to compare, in words; empty: nothing")


Key = tuple[int, str, float, float]  # kernel, method, α, β


def comparable(job: Job) -> bool:
    """Whether it explains kernels on several images."""
    return len(job.request.images) > 1 and job.request.methods != ["activations"]


def made(services: Services, job_id: str, name: str) -> tuple[bytes, bool]:
    """A file of `JOB_ARTIFACTS`, made once when the job has ended, and whether it has.

    Raises:
        ArtifactNotFound: there is nothing to compare.
    """
    kept = services.records.drawn(job_id, name)
    if kept and (data := services.store.get(kept)):
        return data, True
    job = services.records.job(job_id)
    if not comparable(job):
        raise ArtifactNotFound(
            f"job {job_id} explains kernels on fewer than two images, so there is nothing to compare"
        )
    with services.drawing:
        data = _make(services, job, name)
    if job.status.terminal:
        digest = services.store.digest(data)
        services.records.keep_drawn(job_id, None, name, digest)
        services.store.put(data)
    return data, job.status.terminal


def _make(services: Services, job: Job, name: str) -> bytes:
    series, left_out = _series(job)
    found = {
        key: {number: evidence(services, *services.records.result(job.id, one.index)) for number, one in row.items()}
        for key, row in series.items()
    }
    scores = _scores(job, found, left_out)
    if name == "consistency.json":
        return scores.model_dump_json().encode()
    buffer = BytesIO()
    _sheet(services, job, found, scores).save(buffer, "PNG")
    return buffer.getvalue()


def _series(job: Job) -> tuple[dict[Key, dict[int, ItemResult]], str]:
    """The results that are compared, by kernel, method, α and β, then by the image's number; what is left out."""
    number_of = {digest: number for number, digest in enumerate(job.request.images)}
    found: dict[Key, dict[int, ItemResult]] = {}
    for one in job.results:
        if one.status == "succeeded" and one.kernel is not None:
            key = (one.kernel, one.method, one.alpha, one.beta)
            found.setdefault(key, {})[number_of[one.image]] = one
    most = {kernel: max(len(row) for key, row in found.items() if key[0] == kernel) for kernel, *_ in found}
    order = sorted(found, key=lambda key: (-most[key[0]], key[0]))  # and as the request has its methods
    left_out = f"{len(order) - MOST_SERIES} more of kernels and methods" if len(order) > MOST_SERIES else ""
    return {key: dict(sorted(found[key].items())) for key in order[:MOST_SERIES]}, left_out


def _scores(job: Job, found: dict[Key, dict[int, figures.Evidence]], left_out: str) -> Consistency:
    stride = catalogue.network(job.request.model).layer(job.request.layer).stride
    described: dict[Key, dict[int, Description]] = {}
    for key, row in found.items():
        pictures = {number: consistency.description(one.x, stride) for number, one in row.items()}
        described[key] = {number: picture for number, picture in pictures.items() if picture is not None}
    rows = []
    for key, own in described.items():
        rivals = [others for other, others in described.items() if other[1:] == key[1:] and other[0] != key[0]]
        kernel, method, alpha, beta = key
        rows.append(
            Agreement(
                kernel=kernel,
                method=method,
                alpha=alpha,
                beta=beta,
                images=len(own),
                consistency=consistency.consistency(own),
                discrimination=consistency.discrimination(own, rivals),
            )
        )
    return Consistency(
        final=job.status.terminal, series=rows, originals=_of_originals(found, stride), left_out=left_out
    )


def _of_originals(found: dict[Key, dict[int, figures.Evidence]], stride: int) -> float | None:
    """The consistency of the images themselves, about their own mean colour."""
    pixels = {
        number: np.asarray(one.original.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
        for row in found.values()
        for number, one in row.items()
    }
    if not pixels:
        return None
    mean = np.mean([one.mean(axis=(1, 2), keepdims=True) for one in pixels.values()], axis=0)
    described = {number: consistency.description(one - mean, stride) for number, one in pixels.items()}
    return consistency.consistency({number: one for number, one in described.items() if one is not None})


def _sheet(
    services: Services, job: Job, found: dict[Key, dict[int, figures.Evidence]], scores: Consistency
) -> Image.Image:
    request = job.request
    size = catalogue.network(request.model).input_size
    originals = {
        number: images.resized(images.decode(data, services.max_pixels), size)
        for number, digest in enumerate(request.images)
        if (data := services.store.get(digest)) is not None
    }
    weights = len({key[2:] for key in found}) > 1
    series = []
    for one, row in zip(scores.series, found.values(), strict=True):
        name = figures.TITLES[one.method] if len(request.methods) > 1 else f"kernel {one.kernel}"
        heading = f"{name}, {one.alpha:g}, {one.beta:g}" if weights and one.method in OPTIMIZED else name
        notes = [f"{word} {value:.2f}" for word, value in _told(one) if value is not None]
        shown = {number: piece for number, piece in row.items() if number in originals}
        series.append(sheets.Series(heading, one.kernel, shown, notes))
    title = f"What kernels of {request.layer} ({request.model}) respond to in {len(request.images)} images"
    rest = f"Not shown: {scores.left_out}. " if scores.left_out else ""
    if scores.originals is not None:
        rest += f"Consistency of the images themselves: {scores.originals:.2f}"
    return sheets.contact_sheet(title, originals, series, rest)


def _told(one: Agreement) -> list[tuple[str, float | None]]:
    return [("consistency", one.consistency), ("discrimination", one.discrimination)]
