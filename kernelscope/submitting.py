"""Jobs of any number of images: as many images in each as the server takes, as many jobs as it has room for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from kernelscope.client import Client, ClientError, Job, ServerError
from kernelscope.photos import Photo, batches
from kernelscope.terminal import say
from shared.schemas import ExplainOptions

SHORTEST_PAUSE = 5.0  # before a request is sent again that a full quota or queue refused
LONGEST_PAUSE = 60.0  # after a refusal: the server's estimate does not know of jobs that end sooner
REFUSED_SECONDS = 600.0  # for which that is tried
NO_ROOM = ("quota-exceeded", "queue-full")  # problems that a smaller job may not have
ENDED = (404, 409, 410)  # statuses that refuse to cancel a job which has ended, or is gone
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


@dataclass(frozen=True)
class Request:
    """A request for a job of these images; sent again, it has the same key, and makes no second job."""

    photos: list[Photo]
    idempotency_key: str = field(default_factory=lambda: uuid4().hex)

    def halves(self) -> list[Request]:
        """Requests for half of the images each; of one image, the request itself."""
        middle = len(self.photos) // 2
        return [Request(self.photos[:middle]), Request(self.photos[middle:])] if middle else [self]


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
        left = deque(map(Request, batches(photos, self.options)))
        while left:
            request = left.popleft()
            halves = request.halves()
            try:
                made = self._made(request)
            except (ServerError, OSError) as error:  # OSError: a file cannot be read
                if isinstance(error, ServerError) and _of_the_moment(error):
                    smaller = self.paused and _slug(error) in NO_ROOM  # the quota may be less than one job
                    left.extendleft(reversed(halves if smaller else [request]))
                    yield error
                elif len(halves) > 1 and (_of_one_image(error) or _too_large(error)):
                    left.extendleft(reversed(halves))
                elif self.several and _of_one_image(error):
                    self.leave_out(request.photos[0], _reason(error))
                else:
                    raise
            else:
                self.paused = 0.0
                yield made

    def leave_out(self, photo: Photo, why: str) -> None:
        """Explain the others without this one."""
        self.refused[photo.label] = why
        say(f"skipped: {photo.label}: {why}")

    def pause(self, refusal: ServerError) -> None:
        """Wait for as long as the server asks, and for REFUSED_SECONDS in all at most.

        Raises:
            ServerError: the refusal, where there was no room for so long.
        """
        seconds = min(max(SHORTEST_PAUSE, refusal.retry_after or 0.0), LONGEST_PAUSE, REFUSED_SECONDS - self.paused)
        if seconds <= 0:
            raise refusal
        if not self.paused:
            say(f"{refusal}; trying again for up to {REFUSED_SECONDS / 60:.0f} minutes")
        self.paused += seconds
        time.sleep(seconds)

    def _made(self, request: Request) -> Batch:
        fields: Mapping[str, Any] = self.options.model_dump(exclude_none=True, exclude_defaults=True)
        fields = {**fields, "layer": self.options.layer, "kernels": self.options.kernels}
        paths = [photo.path for photo in request.photos]
        return Batch(self.client.explain(paths, idempotency_key=request.idempotency_key, **fields), request.photos)


def cancel(jobs: Sequence[Job]) -> bool:
    """Cancel jobs after Ctrl-C, and say so. Returns whether the server has confirmed it."""
    what = "the job is" if len(jobs) == 1 else "the jobs are"
    for number, job in enumerate(jobs):
        try:
            job.cancel()
        except ClientError as error:
            if isinstance(error, ServerError) and error.status in ENDED:
                continue
            say(f"interrupted, but the server did not confirm that {what} cancelled: {error}")
            ids = " ".join(one.id for one in jobs[number:])
            say(f"what may still run is cancelled by: kernelscope cancel {ids}")
            return False
    say(f"interrupted: {what} cancelled")
    return True


def _of_the_moment(error: ServerError) -> bool:
    """Whether the server would take the same request later: the quota is used up, or the queue is full."""
    return not error.too_large and (error.status == 429 or (error.status == 503 and error.retry_after is not None))


def _too_large(error: ServerError | OSError) -> bool:
    """Whether the server would take a job of fewer images."""
    return isinstance(error, ServerError) and error.too_large


def _slug(error: ServerError) -> str:
    """The name of its problem's type."""
    return error.problem.type.rpartition("/")[2]


def _of_one_image(error: ServerError | OSError) -> bool:
    """Whether other images of the same request may be accepted."""
    if isinstance(error, ServerError):
        return error.status == 413 or _slug(error) in ONE_IMAGE
    return True


def _reason(error: ServerError | OSError) -> str:
    return error.problem.detail if isinstance(error, ServerError) else error.strerror or str(error)
