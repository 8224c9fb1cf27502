"""The images of an `explain`: which files its arguments mean, and how many go into one job."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from kernelscope.results import labels_of
from shared.schemas import MAX_IMAGES, ExplainOptions, ExplainRequest, variants
from shared.schemas.requests import kernel_choices

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BODY_BYTES = 24_000_000  # of one request, which may have 32 MB unless the server's operator has changed that
MAX_ITEMS = 2048  # of one job, unless the operator has changed that


@dataclass(frozen=True)
class Photo:
    """An image file, and its name in tables and in the names of its pictures."""

    path: Path
    label: str


def found(paths: Sequence[Path]) -> list[Photo]:
    """The images that arguments mean: files, folders with all below them, and patterns as photos/*.jpg.

    Raises:
        typer.BadParameter: there is no such file, or no image in a folder.
    """
    files: dict[Path, str] = {}
    for path in paths:
        below = list(_below(path))
        if not below:
            raise typer.BadParameter(f"there is no image in {path} ({', '.join(SUFFIXES)})", param_hint="IMAGE…")
        for file, name in below:
            files.setdefault(file.resolve(), name)
    labels = labels_of(list(files.values()))
    return [Photo(path, label) for path, label in zip(files, labels, strict=True)]


def _below(path: Path) -> Iterator[tuple[Path, str]]:
    """Files and what they are called: in a folder by their path in it."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path)
            hidden = any(part.startswith(".") for part in inside.parts)
            if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
                yield file, inside.as_posix()
    elif path.exists():
        yield path, path.name
    else:  # where the shell does not expand it: on Windows, or in quotes
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - of absolute paths too
        if not matches:
            raise typer.BadParameter(f"{path} does not exist", param_hint="IMAGE…")
        for match in matches:
            yield from _below(Path(match))


def items_of_one(options: ExplainOptions) -> int:
    """How many explanations are asked for of each image."""
    request = ExplainRequest(**options.model_dump(), images=["0" * 64])
    return len(kernel_choices(options.kernels)) * len(variants(request))


def batches(photos: Sequence[Photo], options: ExplainOptions) -> Iterator[list[Photo]]:
    """As many images as one job takes."""
    most = max(1, min(MAX_IMAGES, MAX_ITEMS // items_of_one(options)))
    batch: list[Photo] = []
    size = 0
    for photo in photos:
        bytes_ = photo.path.stat().st_size
        if batch and (len(batch) == most or size + bytes_ > BODY_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(photo)
        size += bytes_
    if batch:
        yield batch
