"""Jobs of any number of images: as many images in each as the server takes, as many jobs as it has room for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kernelscope.client import Client, ClientError, Job, ServerError
from kernelscope.photos import Photo, batches
from kernelscope.terminal import say
from shared.schemas import ExplainOptions

SHORTEST_PAUSE = 5.0  # before a request is sent again that a full quota or queue refused
REFUSED_SECONDS = 600.0  # for which that is tried
ONE_IMAGE = ("unsupported-image", "unusable-image", "body-too-large")  # problems that another image may not have


@dataclass
class Batch:
    """A job, and its images."""

    job: Job
    photos: list[Photo]

    @property
    def labels(self) -> list[str]:
        """The names of its images."""
        return [photo.label for photo in self.photos]


@dataclass
class Submission:
    """Makes the jobs of one `kernelscope explain`.

    Args:
        several: whether it was called with several images: one that is refused is then left out.
    """

    client: Client
    options: ExplainOptions
    several: bool
    refused: dict[str, str] = field(default_factory=dict)  # images that are left out, and why, by label
    paused: float = 0.0  # seconds, since a job was made

    def batches(self, photos: Sequence[Photo]) -> Iterator[Batch]:
        """Make jobs, one after the other, waiting where the server has no room for the next one.

        Raises:
            ClientError.
        """
        for made in self.attempts(photos):
            if isinstance(made, Batch):
                yield made
            else:
                self.pause(made)

    def attempts(self, photos: Sequence[Photo]) -> Iterator[Batch | ServerError]:
        """Jobs, one after the other; where the server has no room at present, its refusal, and the job after that.

        What it does not take as it is, is halved, down to an image that is left out.

        Raises:
            ClientError.
        """
        left = deque(batches(photos, self.options))
        while left:
            batch = left.popleft()
            middle = len(batch) // 2
            halves = [batch[:middle], batch[middle:]] if middle else [batch]
            try:
                made = self._made(batch)
            except (ServerError, OSError) as error:  # OSError: a file cannot be read
                if isinstance(error, ServerError) and _of_the_moment(error):
                    left.extendleft(reversed(halves if self.paused else [batch]))  # the quota may be less than one job
                    yield error
                elif not self.several or not _of_one_image(error):
                    raise
                elif middle:
                    left.extendleft(reversed(halves))
                else:
                    self.leave_out(batch[0], _reason(error))
            else:
                self.paused = 0.0
                yield made

    def leave_out(self, photo: Photo, why: str) -> None:
        """Explain the others without this one."""
        self.refused[photo.label] = why
        say(f"skipped: {photo.label}: {why}")

    def pause(self, refusal: ServerError) -> None:
        """Wait for as long as the server asks.

        Raises:
            ServerError: the refusal, where there was no room for too long.
        """
        seconds = max(SHORTEST_PAUSE, refusal.retry_after or 0.0)
        if self.paused + seconds > REFUSED_SECONDS:
            raise refusal
        if not self.paused:
            say(f"{refusal}; trying again for up to {REFUSED_SECONDS / 60:.0f} minutes")
        self.paused += seconds
        time.sleep(seconds)

    def _made(self, photos: list[Photo]) -> Batch:
        fields: Mapping[str, Any] = self.options.model_dump(exclude_none=True, exclude_defaults=True)
        fields = {**fields, "layer": self.options.layer, "kernels": self.options.kernels}
        return Batch(self.client.explain([photo.path for photo in photos], **fields), photos)


def cancel(jobs: Sequence[Job]) -> bool:
    """Cancel jobs after Ctrl-C, and say so. Returns whether the server has confirmed it."""
    what = "the job is" if len(jobs) == 1 else "the jobs are"
    try:
        for job in jobs:
            with suppress(ServerError):  # it has ended
                job.cancel()
    except ClientError as error:
        say(f"interrupted, but the server did not confirm that {what} cancelled: {error}")
        return False
    say(f"interrupted: {what} cancelled")
    return True


def _of_the_moment(error: ServerError) -> bool:
    """Whether the server would take the same request later: the quota is used up, or the queue is full."""
    return error.status == 429 or (error.status == 503 and error.retry_after is not None)


def _of_one_image(error: ServerError | OSError) -> bool:
    """Whether other images of the same request may be accepted."""
    if isinstance(error, ServerError):
        return error.status == 413 or error.problem.type.rpartition("/")[2] in ONE_IMAGE
    return True


def _reason(error: ServerError | OSError) -> str:
    return error.problem.detail if isinstance(error, ServerError) else error.strerror or str(error)
