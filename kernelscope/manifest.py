"""What a folder of explanations has, so that the same command continues there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kernelscope.client import Job
from kernelscope.client.files import written
from kernelscope.photos import Photo
from kernelscope.terminal import say
from shared.errors import ModelUnavailable
from shared.schemas import ItemResult, WholeJob

MANIFEST = "explain.json"


class Saved(BaseModel):
    """An image of a manifest: its label, its job, and the file in the folder that has the job's record."""

    label: str
    job: str
    record: str


class Manifest(BaseModel):
    """What a folder of explanations has, so that the same command continues."""

    options: dict[str, Any]
    images: dict[str, Saved] = {}  # by the SHA-256 of the file


@dataclass
class Folder:
    """A folder of explanations.

    Args:
        options: of the request; results by other options are not reused.
    """

    path: Path
    options: dict[str, Any]
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = Manifest(options=self.options)
        file = self.path / MANIFEST
        try:
            before = Manifest.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError):
            say(f"{file} cannot be read: every image is explained again")
            return
        if before.options == self.options:
            self.manifest = before
        else:
            names = {*before.options, *self.options}
            other = sorted(name for name in names if before.options.get(name) != self.options.get(name))
            say(
                f"{self.path} has explanations with another {', '.join(other)}: pictures of the same name are "
                "replaced; a folder of their own keeps them apart (-o)"
            )

    def note(self, job: Job, photos: Sequence[Photo]) -> None:
        """Write the record of a job as it is, and which images it has."""
        self.path.mkdir(parents=True, exist_ok=True)
        known = {one.job: one.record for one in self.manifest.images.values()}
        record = known.get(job.id) or self._free()
        for digest, photo in zip(job.request.images, photos, strict=True):
            self.manifest.images[digest] = Saved(label=photo.label, job=job.id, record=record)
        for name, content in ((record, job), (MANIFEST, self.manifest)):
            with written(self.path / name) as file:
                file.write(content.model_dump_json(indent=1).encode())

    def record(self, saved: Saved) -> WholeJob | None:
        """The record of a job, if it is there and has all its results."""
        try:
            return WholeJob.model_validate_json((self.path / saved.record).read_bytes())
        except (OSError, ValidationError):
            return None

    def _free(self) -> str:
        names = ("job.json" if number == 1 else f"job-{number}.json" for number in range(1, 100_000))
        return next(name for name in names if not (self.path / name).exists())


def digest_of(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def results_of(record: WholeJob, digest: str, weights: str | None) -> list[ItemResult]:
    """The results that a record has of an image; none if another try may give others.

    Args:
        weights: SHA-256 of those that the server has for the network now; None: not known.
    """
    found = [one for one in record.results if one.image == digest]
    again = any(
        one.status == "cancelled"
        or one.stopped == "deadline"
        or (one.error and (one.error.status >= 500 or one.error.type.endswith(ModelUnavailable.type_uri())))
        or (weights and one.weights and one.weights.sha256 != weights)
        for one in found
    )
    return [] if again else found
