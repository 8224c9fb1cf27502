"""Explanations of any number of images: several jobs at once, saved as they end, continued by the same command."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress, TaskID

from kernelscope.client import Client, ClientError, Job, NotFound, ServerError, ServerUnreachable, WaitTimeout
from kernelscope.manifest import Folder, digest_of, results_of
from kernelscope.photos import Photo, items_of_one
from kernelscope.results import Explained, explained, save, saved_before
from kernelscope.submitting import LONGEST_PAUSE, Batch, Submission, cancel
from kernelscope.supervise import StackFailed
from kernelscope.terminal import progress, say, state
from shared.schemas import ExplainOptions, WholeJob

OPEN_JOBS = 4  # that are unfinished at once: the worker is busy, and little is lost by Ctrl-C
LOOK_SECONDS = 1.0
CANCEL_SECONDS = 10.0


@dataclass
class Run:
    """One `kernelscope explain` that saves its pictures.

    Args:
        folder: where they go.
        total: the number of images.
    """

    client: Client
    options: ExplainOptions
    folder: Folder
    total: int
    jobs: list[Job | WholeJob] = field(default_factory=list)
    results: list[Explained] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    saved: int = 0  # images
    full: bool = False  # the server had no room for another job, and none has ended since
    not_before: float = 0.0  # on the monotonic clock: the server wants no request for another job earlier
    submission: Submission = field(init=False)

    def __post_init__(self) -> None:
        self.submission = Submission(self.client, self.options, several=self.total > 1)

    @property
    def refused(self) -> dict[str, str]:
        """The images that are left out, and why, by label."""
        return self.submission.refused

    @property
    def done(self) -> int:
        """The number of images that are saved or left out."""
        return self.saved + len(self.refused)

    def follow(self, photos: Sequence[Photo]) -> None:
        """Make jobs and save their pictures as they end. Ctrl-C cancels those that are unfinished.

        Raises:
            ClientError.
        """
        open_jobs: list[Batch] = []
        making = self.submission.attempts(self._continued(self._different(photos), open_jobs))
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
        except (ClientError, StackFailed):
            self._say_how_to_continue()
            raise

    def _different(self, photos: Sequence[Photo]) -> dict[str, Photo]:
        """The images by the SHA-256 of their files; another file with the same content is skipped."""
        different: dict[str, Photo] = {}
        for photo in photos:
            first = different.setdefault(digest_of(photo.path) or str(photo.path), photo)
            if first is not photo:
                self.submission.leave_out(photo, f"the same image as {first.path}")
        return different

    def _make(self, making: Iterator[Batch | ServerError], open_jobs: list[Batch], most: int) -> None:
        """Make jobs until so many are unfinished, or the server has no room for another before one of them ends."""
        while len(open_jobs) < most:
            early = self.not_before - time.monotonic()
            if open_jobs and (self.full or early > 0):
                return
            time.sleep(max(0.0, early))
            made = next(making, None)
            if made is None:
                return
            if isinstance(made, Batch):
                self.jobs.append(made.job)
                self.folder.note(made.job, made.photos)
                open_jobs.append(made)
            elif open_jobs:
                self.full = True
                self.not_before = time.monotonic() + min(LONGEST_PAUSE, made.retry_after or 0.0)
            else:
                self.submission.pause(made)

    def _wait(self, open_jobs: list[Batch], bar: Progress, task: TaskID, making: Iterator[Batch | ServerError]) -> None:
        """Follow the oldest job for a moment, save those that have ended, and make others in their place."""
        oldest = open_jobs[0]

        def moved(seen: Job) -> None:
            batches = [Batch(seen, oldest.photos), *open_jobs[1:]]
            completed = self.done + sum(one.job.progress.fraction * len(one.photos) for one in batches)
            bar.update(task, description=self._state(batches), completed=completed)

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
            ended = state(oldest.job) if self.total == 1 else f"{self.done} of {self.total} images"
            bar.update(task, description=ended, completed=self.done)

    def _state(self, batches: Sequence[Batch]) -> str:
        """How many explanations are made, of those that are saved, in jobs, and to be asked for; and the first job."""
        current = state(batches[0].job)
        if self.total == 1:
            return current
        each = items_of_one(self.options)
        made, all_ = len(self.results), len(self.results) + each * (self.total - self.done)
        for one in batches:
            made += one.job.progress.completed
            all_ += (one.job.progress.total or each * len(one.photos)) - each * len(one.photos)
        return f"{made} of {all_} explanations of {self.total} images, the current job {current}"

    def _ended(self, batch: Batch) -> None:
        self.files += save(batch.job, batch.labels, self.folder.path)
        self.folder.note(batch.job, batch.photos)  # last: the record says that the pictures are there
        self.results += explained(batch.job, batch.labels)
        self.saved += len(batch.photos)
        self.full = False

    def _continued(self, photos: Mapping[str, Photo], open_jobs: list[Batch]) -> list[Photo]:
        """The images that are still to be explained: neither in the folder from an earlier run, nor in a job of it.

        Args:
            photos: by the SHA-256 of their files.
        """
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
                self.saved += 1
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
        """Cancel what is unfinished, and save what was finished of many images; unless the server is away."""
        if cancel([one.job for one in open_jobs]) and self.total > 1:
            with suppress(ServerUnreachable):
                for one in open_jobs:
                    with suppress(ServerError, WaitTimeout):
                        one.job.wait(CANCEL_SECONDS)
                        self._ended(one)
        self._say_how_to_continue()

    def _say_how_to_continue(self) -> None:
        if self.total > 1:
            say(f"the same command with --output {self.folder.path} continues")
