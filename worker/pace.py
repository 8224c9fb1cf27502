"""How fast a cut network runs here and what memory it takes, measured when it is first used.

Its precision and how many problems are stepped together follow.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

from worker.accelerator import free_memory
from worker.suppression import Bounds, Watched

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
STEP_SECONDS = 0.4  # a batch's step stays under this, so that a cancelled job answers within a second
LARGEST_BATCH = {"cpu": 16, "cuda": 512}  # more is no faster
WORTH_IT = 0.85  # bfloat16 is used where it takes less than this share of float32's time
HOPELESS = 5  # times float32's time: bfloat16 without instructions for it, of which one evaluation may take a minute
SHARE = 0.8  # of the free memory that may be planned with
LAYER_TENSORS = 6  # of the layer's size that a solver keeps or makes in a step
IMAGE_TENSORS = 12


@dataclass(frozen=True)
class Pace:
    """The outcome of the measurement."""

    precision: torch.dtype
    seconds: float  # of one gradient evaluation of one problem
    bytes: int  # that one problem takes while it is stepped
    batch: int  # problems to begin with
    most: int  # problems, if their step turns out to be short enough


_measured: WeakKeyDictionary[nn.Module, Pace] = WeakKeyDictionary()


def pace(cut: nn.Module, size: int, device: torch.device) -> Pace:
    """Measure once for a layer."""
    if cut not in _measured:
        single = _seconds(cut, size, device, torch.float32)
        half = _seconds(cut, size, device, torch.bfloat16, HOPELESS * single)
        precision, seconds = (torch.bfloat16, half) if half < WORTH_IT * single else (torch.float32, single)
        most = LARGEST_BATCH.get(device.type, 64)
        batch = max(1, min(most, int(STEP_SECONDS / seconds)))
        _measured[cut] = Pace(precision, seconds, _bytes(cut, size, device), batch, most)
        log.info(
            "one evaluation: float32 %.1f ms, bfloat16 %.1f ms, %.0f MB; batches of %d",
            1e3 * single,
            1e3 * half,
            _measured[cut].bytes / 1e6,
            batch,
        )
    return _measured[cut]


def room_in_memory(speed: Pace, device: torch.device) -> int:
    """How many more problems fit into the memory that is free now."""
    return int(SHARE * _free(device) / speed.bytes)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it is memory that has run out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free(device: torch.device) -> int:
    """Bytes: of the card, or of the machine and the container."""
    if device.type == "cuda":
        return free_memory(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(stat.get("inactive_file", 0)))  # pages of files are given up
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return int(free)


def _seconds(cut: nn.Module, size: int, device: torch.device, precision: torch.dtype, hopeless: float = inf) -> float:
    """The faster of two evaluations after one to warm up, which is enough if it takes longer than `hopeless`."""
    best = inf
    image = _image(size, device)
    bounds = cut.bounds(image, precision) if isinstance(cut, Watched) else None
    for trial in range(3):
        begin = time.perf_counter()
        _evaluate(cut, image, bounds, precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - begin
        if taken > hopeless:
            return taken
        if trial:
            best = min(best, taken)
    return best


def _bytes(cut: nn.Module, size: int, device: torch.device) -> int:
    """Of a problem: what its evaluation keeps for the way back, and the solver's own tensors."""
    known = {parameter.data_ptr() for parameter in cut.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    image = _image(size, device)
    bounds = cut.bounds(image, torch.float32) if isinstance(cut, Watched) else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = _evaluate(cut, image, bounds, torch.float32)
    return sum(kept.values()) + LAYER_TENSORS * features.nbytes + IMAGE_TENSORS * 3 * size * size * 4


def _image(size: int, device: torch.device) -> Tensor:
    return torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()


def _evaluate(cut: nn.Module, image: Tensor, bounds: Bounds | None, precision: torch.dtype) -> Tensor:
    features: Tensor
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        if isinstance(cut, Watched):
            features, _ = cut.watch(image, [bounds], torch.ones(1, device=image.device))
        else:
            features = cut(image)
    torch.autograd.grad(features, image, torch.ones_like(features))
    return features.detach()
