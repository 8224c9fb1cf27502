"""Reads weights files of any format without running code from them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load as loads
from torch import Tensor

MOST_BYTES = 4_000_000_000  # of a file, which is read into memory
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "state_dict_ema")
PICKLED = (
    "damaged, or more than named tensors, for example a whole pickled model, which cannot be read without running code "
    "from the file. Save its parameters alone: torch.save(model.state_dict(), file), or safetensors.torch.save_file"
)


class Refused(Exception):
    """A file cannot be used as weights; the message says why and, if possible, how to correct it."""


@dataclass(frozen=True)
class FileContents:
    """The contents of a weights file.

    Args:
        sets: the dictionaries of named tensors by their place in the file (`model_ema`); "" for a bare state dict.
        metadata: of a safetensors file.
        damage: why the file could not be read; empty if it could.
    """

    sets: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    damage: str = ""


def version(file: Path) -> tuple[int, int]:
    """(modification time in ns, size in bytes): the contents are unchanged as long as this is."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # for example a broken link, or an invalid name
        raise Refused(f"cannot be read ({getattr(error, 'strerror', error)})") from error
    if status.st_size > MOST_BYTES:
        raise Refused(
            f"is {status.st_size / 1e9:.1f} GB; files above {MOST_BYTES / 1e9:.0f} GB are not read. Save the network's "
            "parameters alone"
        )
    return status.st_mtime_ns, status.st_size


def version_now(file: Path) -> tuple[int, int] | None:
    """The `version` of a file; None if there is none, for example because it is not yet downloaded."""
    with suppress(Refused):
        return version(file)
    return None


def sha256(file: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache
def header(file: Path, modified: int, size: int) -> FileContents:  # noqa: ARG001 - part of the cache's key
    """A file's parameters without their values; `modified` and `size` are those of `version`."""
    return contents_of(file, "meta")


def _described(opened: Any, name: str) -> Tensor:
    """A tensor of the same shape and dtype on the meta device; its values are not read."""
    one = opened.get_slice(name)
    return torch.empty(one.get_shape(), dtype=FLOATS.get(one.get_dtype(), torch.int64), device="meta")


def _unpacked(file: Path, device: str) -> Any:
    """The contents of a .pth. On the meta device values are not read, except in the format before torch 1.6."""
    mapped = device == "meta" and is_zipfile(file)  # the older format cannot be mapped
    return torch.load(file, map_location=device, weights_only=True, mmap=mapped)


def contents_of(file: Path, device: str) -> FileContents:
    """Read a file, without running code from it."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                described = {name: _described(opened, name) for name in opened.keys()}  # noqa: SIM118 - no mapping
                metadata = opened.metadata() or {}
            # not memory-mapped: if the file were truncated meanwhile, the process would be killed
            return FileContents({"": described if device == "meta" else loads(file.read_bytes())}, metadata)
        return FileContents(dict(_sets(_unpacked(file, device))), {})
    except OSError as error:  # possibly temporary
        raise Refused(f"damaged, or cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError:
        return FileContents({}, {}, PICKLED)
    except Exception as error:  # a damaged file may raise anything
        text = str(error)
        return FileContents(
            {}, {}, PICKLED if "TorchScript" in text else f"damaged ({text[:200] or type(error).__name__})"
        )


def _sets(loaded: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, dictionary of named tensors) of a checkpoint, nested as training programs do."""
    if not isinstance(loaded, dict):
        return
    if any(isinstance(entry, Tensor) for entry in loaded.values()) or not place:
        yield place, {str(key): entry for key, entry in loaded.items()}
    for name in NESTED:
        yield from _sets(loaded.get(name), f"{place}.{name}".strip("."))
