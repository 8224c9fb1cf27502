"""What is in a file, whatever it may be: read without running code from it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load as loads
from torch import Tensor

MOST_BYTES = 4_000_000_000  # of a file: it is read into memory as a whole
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "state_dict_ema")
PICKLED = (
    "damaged, or more than named tensors: a whole pickled model, say, which nobody can read without running code from "
    "the file. Save its parameters alone: torch.save(model.state_dict(), file), or safetensors.torch.save_file"
)


class Refused(Exception):
    """A file cannot be used as weights; the message says why, and where that is known what would be right."""


@dataclass(frozen=True)
class Contents:
    """What is in a file, whatever it may be.

    `sets`: the dictionaries of named tensors that it holds, by where they are in it; a bare state dict's is "".
    """

    sets: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    damage: str = ""  # why there are none


def version(file: Path) -> tuple[int, int]:
    """With which a file's contents change: when it was written, in ns, and its size in bytes."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # a link that leads nowhere, say, or a name that no file can have
        raise Refused(f"cannot be read ({getattr(error, 'strerror', error)})") from error
    if status.st_size > MOST_BYTES:
        raise Refused(
            f"is {status.st_size / 1e9:.1f} GB, and more than {MOST_BYTES / 1e9:.0f} GB are not read; save the "
            "network's parameters alone"
        )
    return status.st_mtime_ns, status.st_size


def sha256(file: Path) -> str:
    """Of a file, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache
def header(file: Path, modified: int, size: int) -> Contents:  # noqa: ARG001 - with which its contents change
    """A file's parameters without their numbers; `modified` and `size` are as `version` tells them."""
    return contents_of(file, "meta")


def _described(opened: Any, name: str) -> Tensor:
    """A tensor of the same shape and kind, without its numbers, which are not read."""
    one = opened.get_slice(name)
    return torch.empty(one.get_shape(), dtype=FLOATS.get(one.get_dtype(), torch.int64), device="meta")


def _unpacked(file: Path, device: str) -> Any:
    """A .pth; without its numbers they are not read either, but in the format before torch 1.6."""
    mapped = device == "meta" and is_zipfile(file)  # the older format cannot be
    return torch.load(file, map_location=device, weights_only=True, mmap=mapped)


def contents_of(file: Path, device: str) -> Contents:
    """Read a file, without running code from it."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                described = {name: _described(opened, name) for name in opened.keys()}  # noqa: SIM118 - no mapping
                metadata = opened.metadata() or {}
            # not through its memory map: where a file is cut short meanwhile, that ends the process
            return Contents({"": described if device == "meta" else loads(file.read_bytes())}, metadata)
        return Contents(dict(_sets(_unpacked(file, device))), {})
    except OSError as error:  # not for good, perhaps
        raise Refused(f"damaged, or cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError:
        return Contents({}, {}, PICKLED)
    except Exception as error:  # whatever a damaged file makes the readers raise
        text = str(error)
        return Contents({}, {}, PICKLED if "TorchScript" in text else f"damaged ({text[:200] or type(error).__name__})")


def _sets(loaded: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The dictionaries of named tensors in a checkpoint, as training programs nest them, and where each is."""
    if not isinstance(loaded, dict):
        return
    if any(isinstance(entry, Tensor) for entry in loaded.values()) or not place:
        yield place, {str(key): entry for key, entry in loaded.items()}
    for name in NESTED:
        yield from _sets(loaded.get(name), f"{place}.{name}".strip("."))
