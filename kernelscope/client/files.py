"""The files of jobs: their names, their contents, and writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from shared.schemas import OPTIMIZED, ItemResult, JobSummary

SAVED = ("panel.png", "optimized.png", "contrast.png", "maps.npz")


def folder_name(job: JobSummary, result: ItemResult) -> str:
    """A name such as `conv2_2-kernel16`, with the image's number, method, α and β where the job has several."""
    request = job.request
    several = len(request.images) > 1
    parts = [f"image{request.image_of(result.index)}"] if several else []
    parts += [request.layer, f"kernel{result.kernel}"]
    parts += [result.method] if len(request.methods) > 1 or result.method != "suppression" else []
    if result.method in OPTIMIZED:
        parts += [f"alpha{result.alpha:g}"] if len(request.alpha) > 1 else []
        parts += [f"beta{result.beta:g}"] if len(request.beta) > 1 else []
    return "-".join(parts)


def to_save(
    job: JobSummary, results: Sequence[ItemResult], directory: Path, names: Sequence[str]
) -> list[tuple[str, Path]]:
    """(URL path, file) of everything that `Job.save` downloads."""
    return [
        (result.artifacts[name], directory / f"{folder_name(job, result)}-{name}")
        for result in results
        for name in names
        if name in result.artifacts
    ]


class PartFile:
    """A file that is written beside its target as `NAME.part`, and replaces the target once it is complete."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.part = target.with_name(f"{target.name}.part")
        self.file: BinaryIO = self.part.open("wb")

    def complete(self) -> None:
        """Replace the target."""
        self.file.close()
        self.part.replace(self.target)

    def close(self) -> None:
        """Delete the part file, unless it is complete."""
        self.file.close()
        self.part.unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` at the end of the block unless an exception is raised."""
    part = PartFile(path)
    try:
        yield part.file
        part.complete()
    finally:
        part.close()


def expanded(path: str | Path) -> Path:
    """A path, in which `~` may stand for the home directory."""
    return Path(path).expanduser()


def made(folder: str | Path) -> Path:
    """A folder, created if it does not exist."""
    path = expanded(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, data: bytes) -> Path:
    """Write a file, and return its path."""
    with written(path) as file:
        file.write(data)
    return path


def parsed(name: str, data: bytes) -> Any:
    """A file's content: a Pillow image of a PNG, arrays of NPY and NPZ, objects of JSON."""
    suffix = name.rpartition(".")[2]
    if suffix == "png":
        return Image.open(BytesIO(data))
    if suffix == "json":
        return json.loads(data)
    loaded = np.load(BytesIO(data), allow_pickle=False)
    return {key: loaded[key] for key in loaded.files} if suffix == "npz" else loaded
