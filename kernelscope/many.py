"""Explanations of any number of images: several jobs at once, saved as they end, continued by the same command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from kernelscope.client import Client, ClientError, Job, NotFound, ServerError, WaitTimeout
from kernelscope.manifest import Folder, digest_of, results_of
from kernelscope.photos import Photo, batches
from kernelscope.results import Explained, explained, save, saved_before
from kernelscope.terminal import progress, say, state
from shared.schemas import ExplainOptions, WholeJob

OPEN_JOBS = 4  # that are unfinished at once: the worker is busy, and little is lost by Ctrl-C
LOOK_SECONDS = 1.0
CANCEL_SECONDS = 10.0
ONE_IMAGE = ("unsupported-image", "unusable-image", "body-too-large")  # problems that another image may not have


@dataclass
class Batch:
    """A job that is followed, and its images."""

    job: Job
    photos: list[Photo]

    @property
    def labels(self) -> list[str]:
        """The names of its images."""
        return [photo.label for photo in self.photos]


@dataclass
class Run:
    """One `kernelscope explain`.

    Args:
        folder: where the pictures go; None where nobody waits for them.
    """

    client: Client
    options: ExplainOptions
    folder: Folder | None
    jobs: list[Job | WholeJob] = field(default_factory=list)
    results: list[Explained] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # why, by label
    total: int = 0  # images
    done: int = 0  # of them

    def submit(self, photos: Sequence[Photo]) -> Iterator[Batch]:
        """Make jobs, one after the other."""
        self.total = self.total or len(photos)
        for batch in batches(photos, self.options):
            for made in self._submitted(batch):
                self.jobs.append(made.job)
                yield made

    def follow(self, photos: Sequence[Photo]) -> None:
        """Make jobs and save their pictures as they end. Ctrl-C cancels those that are unfinished.

        Raises:
            ClientError.
        """
        assert self.folder
        open_jobs: list[Batch] = []
        self.total = len(photos)
        making = self.submit(self._continued(self._different(photos), open_jobs))
        try:
            self._make(making, open_jobs, 1)  # before the bar: it may be refused
            with progress() as bar:
                done = f"{self.done} of {self.total} images"
                task = bar.add_task(done, total=float(self.total), completed=self.done)
                while open_jobs:
                    self._wait(open_jobs, bar, task, making)
        except KeyboardInterrupt:
            self._interrupted(open_jobs)
            raise
        except ClientError:
            if self.total > 1:
                say(f"the same command with --output {self.folder.path} continues")
            raise

    def _different(self, photos: Sequence[Photo]) -> dict[str, Photo]:
        """The images by the SHA-256 of their files; another file with the same content is skipped."""
        different: dict[str, Photo] = {}
        for photo in photos:
            first = different.setdefault(digest_of(photo.path) or str(photo.path), photo)
            if first is not photo:
                self.refused[photo.label] = f"the same image as {first.path}"
                self.done += 1
                say(f"skipped: {photo.label}: the same image as {first.path}")
        return different

    def _make(self, making: Iterator[Batch], open_jobs: list[Batch], most: int) -> None:
        """Make jobs until so many are unfinished."""
        assert self.folder
        while len(open_jobs) < most and (made := next(making, None)):
            self.folder.note(made.job, made.photos)
            open_jobs.append(made)

    def _submitted(self, photos: list[Photo]) -> Iterator[Batch]:
        """Jobs of these images: one, unless the server refuses some of the images or takes fewer at once."""
        try:
            fields: Mapping[str, Any] = self.options.model_dump(exclude_none=True, exclude_defaults=True)
            fields = {**fields, "layer": self.options.layer, "kernels": self.options.kernels}
            yield Batch(self.client.explain([photo.path for photo in photos], **fields), photos)
        except (ServerError, OSError) as error:  # OSError: a file cannot be read
            if self.total == 1 or not _of_one_image(error):
                raise
            if len(photos) == 1:
                why = error.problem.detail if isinstance(error, ServerError) else error.strerror or str(error)
                self.refused[photos[0].label] = why
                self.done += 1
                say(f"skipped: {photos[0].label}: {why}")
                return
            middle = len(photos) // 2
            for half in (photos[:middle], photos[middle:]):
                yield from self._submitted(half)

    def _wait(self, open_jobs: list[Batch], bar: Progress, task: TaskID, making: Iterator[Batch]) -> None:
        """Follow the oldest job for a moment, save those that have ended, and make others in their place."""
        oldest = open_jobs[0]

        def moved(seen: Job) -> None:
            others = sum(one.job.progress.fraction * len(one.photos) for one in open_jobs[1:])
            completed = self.done + others + seen.progress.fraction * len(oldest.photos)
            bar.update(task, description=self._state(seen), completed=completed)

        moved(oldest.job)
        self._make(making, open_jobs, OPEN_JOBS)
        with suppress(WaitTimeout):
            oldest.job.wait(LOOK_SECONDS, on_change=moved)
        for one in open_jobs:
            if not one.job.status.terminal:
                one.job.refresh()
        for one in [one for one in open_jobs if one.job.status.terminal]:
            self._ended(one)
            open_jobs.remove(one)
        self._make(making, open_jobs, 1)
        if not open_jobs:
            bar.update(task, description=self._state(oldest.job), completed=self.done)

    def _state(self, job: Job) -> str:
        return state(job) if self.total == 1 else f"{self.done} of {self.total} images, the current job {state(job)}"

    def _ended(self, batch: Batch) -> None:
        assert self.folder
        self.files += save(batch.job, batch.labels, self.folder.path)
        self.folder.note(batch.job, batch.photos)  # last: the record says that the pictures are there
        self.results += explained(batch.job, batch.labels)
        self.done += len(batch.photos)

    def _continued(self, photos: Mapping[str, Photo], open_jobs: list[Batch]) -> list[Photo]:
        """The images that are still to be explained: neither in the folder from an earlier run, nor in a job of it.

        Args:
            photos: by the SHA-256 of their files.
        """
        assert self.folder
        known = self.folder.manifest.images
        if not known:
            return list(photos.values())
        weights = self.client.model(self.options.model).weights_sha256
        left: list[Photo] = []
        unfinished: dict[str, dict[str, Photo]] = {}
        for digest, photo in photos.items():
            saved = known.get(digest)
            record = self.folder.record(saved) if saved else None
            if saved and record and not record.status.terminal:
                unfinished.setdefault(record.id, {})[digest] = Photo(photo.path, saved.label)
                continue
            done = results_of(record, digest, weights) if record else []
            files = saved_before(record, done, saved.label, self.folder.path) if saved and record else None
            if saved and record and done and files is not None:
                self.done += 1
                self.results += [Explained(saved.label, record.request, one) for one in done]
                self.files += files
                self.jobs += [record] if record.id not in {job.id for job in self.jobs} else []
            else:
                taken = {one.label for other, one in known.items() if other != digest} | {one.label for one in left}
                label = saved.label if saved else photo.label
                names = (label if number == 1 else f"{label}-{number}" for number in range(1, len(taken) + 2))
                left.append(Photo(photo.path, next(name for name in names if name not in taken)))
        for job_id, of_job in unfinished.items():
            if batch := self._on_server(job_id, of_job):
                open_jobs.append(batch)
                self.jobs.append(batch.job)
            else:
                left += of_job.values()
        if len(left) < len(photos):
            say(f"continuing in {self.folder.path}: {len(left)} of {len(photos)} images are new")
        return left

    def _on_server(self, job_id: str, photos: Mapping[str, Photo]) -> Batch | None:
        """A job of an earlier run, if the server has it and it was not cancelled."""
        try:
            job = self.client.job(job_id)
        except NotFound:
            return None
        other = set(job.request.images) - set(photos)
        return None if job.status == "cancelled" or other else Batch(job, [photos[one] for one in job.request.images])

    def _interrupted(self, open_jobs: list[Batch]) -> None:
        """Cancel what is unfinished, and save what was finished of many images."""
        assert self.folder
        say("interrupted: the job is cancelled" if self.total == 1 else "interrupted: the jobs are cancelled")
        for one in open_jobs:
            with suppress(ClientError):
                one.job.cancel()
        if self.total > 1:
            for one in open_jobs:
                with suppress(ClientError):
                    one.job.wait(CANCEL_SECONDS)
                    self._ended(one)
            say(f"the same command with --output {self.folder.path} continues")


def _of_one_image(error: ServerError | OSError) -> bool:
    """Whether other images of the same request may be accepted."""
    if isinstance(error, ServerError):
        return error.status == 413 or error.problem.type.rpartition("/")[2] in ONE_IMAGE
    return True
