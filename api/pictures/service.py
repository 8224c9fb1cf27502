"""The files of results and jobs: what is there is told at once, what is not is drawn, once, in a pool, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool

from api.pictures.comparison import Comparison, comparable
from api.pictures.evidence import Files
from api.pictures.figures import MOST_SHOWN, draw, shown
from api.pictures.pool import Pool
from shared import workers
from shared.errors import ArtifactNotFound
from shared.jobs import ARTIFACTS, Found, Head, Records, drawn_artifacts
from shared.store import BlobStore

PANEL = "panel.png"

Drawn = tuple[bytes, bool]  # a file, and whether it will stay so
Place = tuple[str, int | None, str]  # job, the result's index or None for the whole job, name


@dataclass(frozen=True)
class File:
    """A file as it stands.

    Args:
        data: where it is drawn; else the store has it.
        final: whether it will stay so.
    """

    job_id: str
    name: str
    digest: str
    data: bytes | None = None
    final: bool = True


class Pictures:
    """One for the process.

    Args:
        max_pixels: of an image as it was sent.
    """

    def __init__(self, records: Records, store: BlobStore, max_pixels: int, pool: Pool | None = None) -> None:
        self.records = records
        self.store = store
        self.files = Files(store, max_pixels, partial(workers.network, records.redis))
        self.pool = pool or Pool()
        self._drawing: dict[Place, asyncio.Task[File]] = {}

    async def picture(self, job_id: str, index: int, name: str, *, patient: bool = False) -> File:
        """One file of one result.

        Args:
            patient: as of `Pool.run`.

        Raises:
            JobNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
        """
        head, found, file = await run_in_threadpool(self._of_result, job_id, index, name)
        place = (job_id, index, name)
        return file or await self._once(place, head, lambda: self._drawn(place, head, found), patient=patient)

    async def beside(self, job_id: str, index: int, other: str) -> File:
        """The panel of a result with what another job says of the same kernel of the same image. It is not kept.

        Raises:
            JobNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
        """
        head, found, _ = await run_in_threadpool(self._of_result, job_id, index, PANEL)
        place = (job_id, index, f"beside {other}")
        if place not in self._drawing:
            action = self.pool.run(head.owner, lambda: self._beside(head, found, other), patient=False)
            self._drawing[place] = asyncio.create_task(action)
            self._drawing[place].add_done_callback(lambda _: self._drawing.pop(place))
        return await asyncio.shield(self._drawing[place])

    def _beside(self, head: Head, found: Found, other: str) -> File:
        result, theirs = found[0], self.records.whole(other)
        same = [
            one.index
            for one in theirs.results
            if (one.kernel, one.image, one.status) == (result.kernel, result.image, "succeeded")
        ]
        if theirs.request.layer != head.request.layer or not same:
            raise ArtifactNotFound(
                f"job {other} has no result of kernel {result.kernel} of {head.request.layer} on this image"
            )
        shown = [(head, one) for one in self._siblings(head, found, PANEL)[0]]
        shown += [(self.records.head(other), one) for one in self.records.results(other, same[:MOST_SHOWN])]
        several = [self.files.evidence(*one) for one in shown]
        own = next(one for one in several if one.result.index == result.index)
        data = draw(PANEL, own, several)
        return File(head.job_id, PANEL, self.store.digest(data), data, final=False)

    async def of_job(self, job_id: str, name: str, *, patient: bool = False) -> File:
        """A file of `JOB_ARTIFACTS`. Errors as of `picture`."""
        head, file = await run_in_threadpool(self._of_job, job_id, name)
        return file or await self._once(
            (job_id, None, name), head, lambda: self._compared(job_id, name), patient=patient
        )

    async def content(self, file: File) -> bytes:
        """The bytes of a file."""
        if file.data is not None:
            return file.data
        return await run_in_threadpool(self.files.blob, file.job_id, file.name, file.digest)

    async def close(self) -> None:
        """Draw nothing more."""
        for task in self._drawing.values():
            task.cancel()
        await asyncio.gather(*self._drawing.values(), return_exceptions=True)
        self.pool.close()

    async def _once(self, place: Place, head: Head, draw: Callable[[], Drawn], *, patient: bool) -> File:
        """Who asks for what is being drawn waits with the others; it goes on where they all have gone."""
        if place not in self._drawing:
            action = self.pool.run(head.owner, lambda: self._kept(place, head, *draw()), patient=patient)
            self._drawing[place] = asyncio.create_task(action)
            self._drawing[place].add_done_callback(lambda _: self._drawing.pop(place))
        return await asyncio.shield(self._drawing[place])

    def _kept(self, place: Place, head: Head, data: bytes, final: bool) -> File:  # noqa: FBT001 - as it was drawn
        """Drawn, and stored where it will stay so; what is stored of a job that is gone meanwhile is swept."""
        job_id, index, name = place
        if final:
            self.store.put(job_id, data, _drawn_name(head, index, name))
            self.records.late(job_id)
        return File(job_id, name, self.store.digest(data), data, final)

    def _stored(self, head: Head, index: int | None, name: str) -> File | None:
        """A picture that was drawn before."""
        data = self.store.get(head.job_id, _drawn_name(head, index, name))
        return None if data is None else File(head.job_id, name, self.store.digest(data), data)

    def _of_result(self, job_id: str, index: int, name: str) -> tuple[Head, Found, File | None]:
        if name not in ARTIFACTS:
            raise ArtifactNotFound(f"no artifact is named {name}; names: {', '.join(ARTIFACTS)}")
        head, result, blobs = self.records.result(job_id, index)
        if not blobs:
            raise ArtifactNotFound(f"result {index} of job {job_id} has no artifacts: it {result.status}")
        drawn = name in drawn_artifacts(result.method)
        if name in blobs and (not drawn or self.store.has(job_id, blobs[name])):
            return head, (result, blobs), File(job_id, name, blobs[name])
        if not drawn:
            raise ArtifactNotFound(f"result {index} is of method {result.method}, which makes no {name}")
        return head, (result, blobs), self._stored(head, index, name)

    def _drawn(self, place: Place, head: Head, found: Found) -> Drawn:
        made, more, complete = self._siblings(head, found, place[2])
        several = [self.files.evidence(head, one) for one in made]
        own = next(one for one in several if one.result.index == found[0].index)
        return draw(place[2], own, several, more), head.ended or complete

    def _siblings(self, head: Head, found: Found, name: str) -> tuple[list[Found], int, bool]:
        """What a figure shows beside a result, with it, how many it leaves out, and whether all of them are there."""
        index = found[0].index
        numbers, more = shown(name, head.request, index)
        group = {index: found}
        if len(numbers) > 1:
            group = {one[0].index: one for one in self.records.results(head.job_id, numbers)} | group
        made = [group[number] for number in sorted(group) if group[number][0].status == "succeeded"]
        return made, more, len(group) == len(numbers)

    def _of_job(self, job_id: str, name: str) -> tuple[Head, File | None]:
        head = self.records.head(job_id)
        if not comparable(head.request):
            raise ArtifactNotFound(
                f"job {job_id} explains kernels on fewer than two images, so there is nothing to compare"
            )
        return head, self._stored(head, None, name)

    def _compared(self, job_id: str, name: str) -> Drawn:
        job = self.records.whole(job_id)
        comparison = Comparison.of(job, self.files, lambda indices: self.records.results(job_id, indices))
        return comparison.draw(name), job.status.terminal


def _drawn_name(head: Head, index: int | None, name: str) -> str:
    """Of a picture in its job's folder; no index: of the whole job. What was drawn before a retry may show less."""
    return f"drawn{head.round or ''}-{'job' if index is None else index}-{name}"
