"""Comparison of a job's images, kernel by kernel: scores and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from api.pictures import consistency
from api.pictures.colours import Scale, heat
from api.pictures.consistency import Description
from api.pictures.evidence import Evidence, Files
from api.pictures.layout import GAP, LABEL, SMALL, TITLES, Column, cut, grid
from shared.errors import ArtifactNotFound
from shared.jobs import Found, Head
from shared.schemas import OPTIMIZED, ExplainRequest, ItemResult, WholeJob

MOST_SERIES = 16  # compared; a series is a kernel, method, α and β on all images


class Agreement(BaseModel):
    """How similar one kernel's pictures by one method are across images."""

    kernel: int
    method: str
    alpha: float
    beta: float
    images: int = Field(description="number of images compared")
    consistency: float | None = Field(
        description="mean similarity of its X̂ on different images, at most 1; null for fewer than two images"
    )
    discrimination: float | None = Field(
        description="how often its X̂ is more similar to its own X̂ on another image than to another kernel's on the "
        "same image: 0.5 by chance, 1 at best; null if there is nothing to compare"
    )


class Consistency(BaseModel):
    """Whether kernels respond to the same thing in all of a job's images; definitions in docs/evidence.md."""

    final: bool = Field(description="whether the job has ended; until then, the scores are of the results so far")
    series: list[Agreement]
    originals: float | None = Field(description="mean similarity of the images themselves, for comparison")
    left_out: str = Field(description="what was not compared because there is too much, in words; empty: nothing")


Key = tuple[int, str, float, float]  # kernel, method, α, β
Rows = Mapping[Key, Mapping[int, Found]]  # each series' results, by the image's number in the request


def comparable(request: ExplainRequest) -> bool:
    """Whether a request explains kernels on several images."""
    return len(request.images) > 1 and request.explains


@dataclass(frozen=True)
class Comparison:
    """The compared results of a job.

    Their files are read when they are needed and not kept in memory: a job may have 256 results.
    """

    head: Head
    rows: Rows
    left_out: str
    files: Files

    @classmethod
    def of(cls, job: WholeJob, files: Files, read: Callable[[Sequence[int]], list[Found]]) -> Comparison:
        """The comparison of a job's current results.

        Args:
            read: returns the job's results with these indices, with their files' digests.
        """
        series, left_out = _series(job)
        found = {one[0].index: one for one in read([one.index for row in series.values() for one in row.values()])}
        rows = {
            key: {number: found[one.index] for number, one in row.items() if one.index in found}
            for key, row in series.items()
        }
        return cls(Head(job.id, "", job.request, job.status.terminal), rows, left_out, files)

    @property
    def request(self) -> ExplainRequest:
        """The job's request."""
        return self.head.request

    def draw(self, name: str) -> bytes:
        """A file of `JOB_ARTIFACTS`."""
        scores = self.scores()
        if name == "consistency.json":
            return scores.model_dump_json().encode()
        buffer = BytesIO()
        self.sheet(scores).save(buffer, "PNG")
        return buffer.getvalue()

    def scores(self) -> Consistency:
        """The scores of each series, and of the images themselves."""
        described = {key: self._descriptions(row) for key, row in self.rows.items()}
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
            final=self.head.ended, series=rows, originals=self._consistency_of_originals(), left_out=self.left_out
        )

    def _descriptions(self, row: Mapping[int, Found]) -> dict[int, Description]:
        pictures = {number: self.files.description(self.head, found) for number, found in row.items()}
        return {number: picture for number, picture in pictures.items() if picture is not None}

    def _consistency_of_originals(self) -> float | None:
        """The consistency of the images themselves, relative to their own mean colour."""
        numbers = sorted({number for row in self.rows.values() for number in row})
        pixels = {number: np.asarray(self._original(number), np.float32).transpose(2, 0, 1) for number in numbers}
        if not pixels:
            return None
        stride = next(self.files.stride(self.head, one) for row in self.rows.values() for one in row.values())
        mean = np.mean([one.mean(axis=(1, 2), keepdims=True) for one in pixels.values()], axis=0)
        described = {number: consistency.description(one - mean, stride) for number, one in pixels.items()}
        return consistency.consistency({number: one for number, one in described.items() if one is not None})

    def _original(self, number: int) -> Image.Image:
        """An image of the request, from any result on it; an image without a result is decoded."""
        found = next((row[number] for row in self.rows.values() if number in row), None)
        if found is None:
            other = next((result for row in self.rows.values() for result, _ in row.values()), None)
            return self.files.resized(self.head, self.request.images[number], other)
        return self.files.original(self.head, found)

    def sheet(self, scores: Consistency) -> Image.Image:
        """One row per image: the image, then for each kernel its map and each method's picture."""
        request = self.request
        originals: dict[int, Image.Image] = {}
        for number in range(len(request.images)):
            with suppress(ArtifactNotFound):
                originals[number] = self._original(number)
        columns = [Column("image", originals.values())]
        seen: set[int] = set()
        for one, (key, row) in zip(scores.series, self.rows.items(), strict=True):
            if one.kernel not in seen:
                seen.add(one.kernel)
                columns.append(Column(f"map of kernel {one.kernel}", self._maps(one.kernel, originals)))
            notes = [f"{word} {value:.2f}" for word, value in _notes(one) if value is not None]
            columns.append(Column(self._heading(key), self._optimized(row, originals), notes))
        title = f"What kernels of {request.layer} ({request.model}) respond to in {len(request.images)} images"
        words = "Maps are black where there is no activation and bright where it is high; each has its own scale. "
        words += f"Not shown: {scores.left_out}. " if scores.left_out else ""
        if scores.originals is not None:
            words += f"Consistency of the images themselves: {scores.originals:.2f}"
        labels = [f"image {number}\n{cut(request.name_of(number) or '', 14, LABEL - GAP)}" for number in originals]
        return grid(title, words, labels, columns, SMALL)

    def _heading(self, key: Key) -> str:
        kernel, method, alpha, beta = key
        name = TITLES[method] if len(self.request.methods) > 1 else f"kernel {kernel}"
        several = len({other[2:] for other in self.rows}) > 1
        return f"{name}, {alpha:g}, {beta:g}" if several and method in OPTIMIZED else name

    def _optimized(self, row: Mapping[int, Found], numbers: Mapping[int, object]) -> Iterator[Image.Image | None]:
        for number in numbers:
            yield self._evidence(row[number]).optimized if number in row else None

    def _maps(self, kernel: int, numbers: Mapping[int, object]) -> Iterator[Image.Image | None]:
        same = [row for key, row in self.rows.items() if key[0] == kernel]
        for number in numbers:
            found = next((row[number] for row in same if number in row), None)
            before = self._evidence(found).before if found else None
            yield None if before is None else heat(before, Scale.of(before))

    def _evidence(self, found: Found) -> Evidence:
        return self.files.evidence(self.head, found)


def _series(job: WholeJob) -> tuple[dict[Key, dict[int, ItemResult]], str]:
    """The compared results by series, then by the image's number; and what is left out, in words."""
    found: dict[Key, dict[int, ItemResult]] = {}
    for one in job.results:
        if one.status == "succeeded" and one.kernel is not None:
            key = (one.kernel, one.method, one.alpha, one.beta)
            found.setdefault(key, {})[job.request.image_of(one.index)] = one
    most = {kernel: max(len(row) for key, row in found.items() if key[0] == kernel) for kernel, *_ in found}
    order = sorted(found, key=lambda key: (-most[key[0]], key[0]))  # then in the request's order of methods
    left_out = f"{len(order) - MOST_SERIES} more combinations of kernel and method" if len(order) > MOST_SERIES else ""
    return {key: dict(sorted(found[key].items())) for key in order[:MOST_SERIES]}, left_out


def _notes(one: Agreement) -> list[tuple[str, float | None]]:
    return [("consistency", one.consistency), ("discrimination", one.discrimination)]
