"""The files of results and jobs. Stored ones are returned at once; figures are drawn in a pool, once, then stored."""

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
from shared.jobs import ARTIFACTS, MEDIA_TYPES, Found, Head, Records, drawn_artifacts
from shared.store import BlobStore

PANEL = "panel.png"

Drawn = tuple[bytes, bool]  # a file, and whether it is final
FileKey = tuple[str, int | None, str]  # job, index of the result or None for the whole job, name


@dataclass(frozen=True)
class File:
    """A file of a job.

    Args:
        data: its bytes, if it was just drawn or read; else they are in the store.
        final: whether it will not change any more.
    """

    job_id: str
    name: str
    digest: str
    data: bytes | None = None
    final: bool = True

    @property
    def media_type(self) -> str:
        """By the ending of its name."""
        return MEDIA_TYPES[self.name.rsplit(".", 1)[-1]]


class Pictures:
    """Reads and draws files; one for each process.

    Args:
        max_pixels: of an image of a request.
    """

    def __init__(self, records: Records, store: BlobStore, max_pixels: int, pool: Pool | None = None) -> None:
        self.records = records
        self.store = store
        self.files = Files(store, max_pixels, partial(workers.network, records.redis))
        self.pool = pool or Pool()
        self._drawing: dict[FileKey, asyncio.Task[File]] = {}

    async def result_file(self, job_id: str, index: int, name: str, *, bounded: bool = True) -> File:
        """One file of one result.

        Args:
            bounded: as for `Pool.run`.

        Raises:
            JobNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
        """
        head, found, file = await run_in_threadpool(self._find_result_file, job_id, index, name)
        key = (job_id, index, name)
        return file or await self._draw_once(key, head, lambda: self._draw_result(key, head, found), bounded=bounded)

    async def panel_beside(self, job_id: str, index: int, other: str) -> File:
        """The panel of a result with another job's results of the same kernel and image. It is not stored.

        Raises:
            JobNotFound, ArtifactNotFound, DrawingQueueFull, StoreUnavailable.
        """
        head, found, _ = await run_in_threadpool(self._find_result_file, job_id, index, PANEL)
        key = (job_id, index, f"beside {other}")
        return await self._once(key, head, lambda: self._draw_beside(head, found, other))

    def _draw_beside(self, head: Head, found: Found, other: str) -> File:
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

    async def job_file(self, job_id: str, name: str, *, bounded: bool = True) -> File:
        """A file of `JOB_ARTIFACTS`. Raises as `result_file`."""
        head, file = await run_in_threadpool(self._find_job_file, job_id, name)
        key = (job_id, None, name)
        return file or await self._draw_once(key, head, lambda: self._draw_job(job_id, name), bounded=bounded)

    async def content(self, file: File) -> bytes:
        """The bytes of a file."""
        if file.data is not None:
            return file.data
        return await run_in_threadpool(self.files.blob, file.job_id, file.name, file.digest)

    async def close(self) -> None:
        """Stop drawing."""
        for task in self._drawing.values():
            task.cancel()
        await asyncio.gather(*self._drawing.values(), return_exceptions=True)
        self.pool.close()

    async def _draw_once(self, key: FileKey, head: Head, draw: Callable[[], Drawn], *, bounded: bool) -> File:
        return await self._once(key, head, lambda: self._store(key, head, *draw()), bounded=bounded)

    async def _once(self, key: FileKey, head: Head, action: Callable[[], File], *, bounded: bool = True) -> File:
        """Run an action in the pool, once for all requests of this file; it continues if they are all cancelled."""
        if key not in self._drawing:
            self._drawing[key] = asyncio.create_task(self.pool.run(head.owner, action, bounded=bounded))
            self._drawing[key].add_done_callback(lambda _: self._drawing.pop(key))
        return await asyncio.shield(self._drawing[key])

    def _store(self, key: FileKey, head: Head, data: bytes, final: bool) -> File:  # noqa: FBT001 - as in `Drawn`
        """Store a file that is final. If its job was deleted meanwhile, cleanup removes it."""
        job_id, index, name = key
        if final:
            self.store.put(job_id, data, _drawn_name(head, index, name))
            self.records.schedule_cleanup(job_id)
        return File(job_id, name, self.store.digest(data), data, final)

    def _stored(self, head: Head, index: int | None, name: str) -> File | None:
        """A figure that was drawn before."""
        data = self.store.get(head.job_id, _drawn_name(head, index, name))
        return None if data is None else File(head.job_id, name, self.store.digest(data), data)

    def _find_result_file(self, job_id: str, index: int, name: str) -> tuple[Head, Found, File | None]:
        if name not in ARTIFACTS:
            raise ArtifactNotFound(f"no artifact is named {name}; names: {', '.join(ARTIFACTS)}")
        head, result, blobs = self.records.result(job_id, index)
        if not blobs:
            raise ArtifactNotFound(f"result {index} of job {job_id} has no artifacts: it {result.status}")
        drawn = name in drawn_artifacts(result.method)
        if name in blobs and (not drawn or self.store.has(job_id, blobs[name])):
            return head, (result, blobs), File(job_id, name, blobs[name])
        if not drawn:
            raise ArtifactNotFound(f"result {index} is of method {result.method}, which has no {name}")
        return head, (result, blobs), self._stored(head, index, name)

    def _draw_result(self, key: FileKey, head: Head, found: Found) -> Drawn:
        made, more, complete = self._siblings(head, found, key[2])
        several = [self.files.evidence(head, one) for one in made]
        own = next(one for one in several if one.result.index == found[0].index)
        return draw(key[2], own, several, more), head.ended or complete

    def _siblings(self, head: Head, found: Found, name: str) -> tuple[list[Found], int, bool]:
        """The results in a figure of this one, the number of further ones, and whether all of them have ended."""
        index = found[0].index
        numbers, more = shown(name, head.request, index)
        group = {index: found}
        if len(numbers) > 1:
            group = {one[0].index: one for one in self.records.results(head.job_id, numbers)} | group
        made = [group[number] for number in sorted(group) if group[number][0].status == "succeeded"]
        return made, more, len(group) == len(numbers)

    def _find_job_file(self, job_id: str, name: str) -> tuple[Head, File | None]:
        head = self.records.head(job_id)
        if not comparable(head.request):
            raise ArtifactNotFound(
                f"job {job_id} explains kernels on fewer than two images, so there is nothing to compare"
            )
        return head, self._stored(head, None, name)

    def _draw_job(self, job_id: str, name: str) -> Drawn:
        job = self.records.whole(job_id)
        comparison = Comparison.of(job, self.files, lambda indices: self.records.results(job_id, indices))
        return comparison.draw(name), job.status.terminal


def _drawn_name(head: Head, index: int | None, name: str) -> str:
    """The name of a figure in its job's folder; without an index, of the whole job. Each retry has names of its own."""
    return f"drawn{head.round or ''}-{'job' if index is None else index}-{name}"
