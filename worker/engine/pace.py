"""How fast a cut network runs here and what memory it takes, measured when it is first used.

Its precision and how many problems are stepped together follow.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn

from shared.images import Frame
from worker.engine.accelerator import free_memory, has_bfloat16, out_of_memory
from worker.methods.suppression import Bounds, Watched

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
STEP_SECONDS = 0.4  # a batch's step stays under this, so that a cancelled job answers within a second
LARGEST_BATCH = {"cpu": 16, "cuda": 512}  # more is no faster
USEFUL_BATCH = {"cuda": 32}  # evaluated together where the time of an evaluation is measured
WORTH_IT = 0.85  # bfloat16 is used where it takes less than this share of float32's time
HOPELESS = 5  # times float32's time: bfloat16 without instructions for it
PROBE = Frame(28, 28, 3)
SHARE = 0.8  # of the free memory that may be planned with
TRANSIENT = 0.6  # of a problem's bytes that are there in a step only
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


def pace(cut: nn.Module, frame: Frame, device: torch.device) -> Pace:
    """Measure once for a layer."""
    if cut not in _measured:
        single = _seconds(cut, frame, device, torch.float32)
        half = inf if emulated(device) else _seconds(cut, frame, device, torch.bfloat16, HOPELESS * single)
        faster = half < WORTH_IT * single or has_bfloat16(device)
        precision, seconds = (torch.bfloat16, half) if faster else (torch.float32, single)
        most = LARGEST_BATCH.get(device.type, 64)
        batch = max(1, min(most, int(STEP_SECONDS / seconds)))
        _measured[cut] = Pace(precision, seconds, _bytes(cut, frame, device), batch, most)
        log.info(
            "one evaluation: float32 %.1f ms, bfloat16 %s, %.0f MB; batches of %d",
            1e3 * single,
            f"{1e3 * half:.1f} ms" if half < inf else "emulated",
            _measured[cut].bytes / 1e6,
            batch,
        )
    return _measured[cut]


@cache
def emulated(device: torch.device) -> bool:
    """Whether it is a CPU without instructions for bfloat16, as a small network shows in a tenth of a second.

    One evaluation of a large network may take a minute there, which looks like a device that hangs.
    """
    if device.type != "cpu":
        return False
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    network = network.requires_grad_(False).to(memory_format=torch.channels_last)
    single, half = (_timed(network, PROBE, device, kind, 1, inf) for kind in (torch.float32, torch.bfloat16))
    return half > HOPELESS * single


def room_in_memory(speed: Pace, device: torch.device, running: int = 0) -> int:
    """How many more problems fit into the memory that is free now, beside so many that will make another step.

    Between two steps a card's memory does not show what these take in one. The CPU's does: malloc keeps it.
    """
    reserved = int(TRANSIENT * speed.bytes) * running if device.type == "cuda" else 0
    return max(0, int((SHARE * _free(device) - reserved) / speed.bytes))


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


def _seconds(
    cut: nn.Module, frame: Frame, device: torch.device, precision: torch.dtype, hopeless: float = inf
) -> float:
    """Of a problem. On a card many are evaluated together: with one of them it is the launches that are measured."""
    rows = USEFUL_BATCH.get(device.type, 1)
    while True:
        try:
            return _timed(cut, frame, device, precision, rows, hopeless) / rows
        except RuntimeError as error:
            if rows == 1 or not out_of_memory(error):
                raise
        rows //= 2


def _timed(
    cut: nn.Module, frame: Frame, device: torch.device, precision: torch.dtype, rows: int, hopeless: float
) -> float:
    """The faster of two evaluations after one to warm up, which is enough if it takes longer than `hopeless`."""
    best, image = inf, _image(frame, device)
    bounds = cut.bounds(image, precision) if isinstance(cut, Watched) else None
    images = image.detach().repeat(rows, 1, 1, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    for trial in range(3):
        begin = time.perf_counter()
        _evaluate(cut, images, bounds, precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - begin
        if taken > hopeless * rows:
            return taken
        if trial:
            best = min(best, taken)
    return best


def _bytes(cut: nn.Module, frame: Frame, device: torch.device) -> int:
    """Of a problem: what its evaluation keeps for the way back, and the solver's own tensors."""
    known = {parameter.data_ptr() for parameter in cut.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    image = _image(frame, device)
    bounds = cut.bounds(image, torch.float32) if isinstance(cut, Watched) else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = _evaluate(cut, image, bounds, torch.float32)
    return sum(kept.values()) + LAYER_TENSORS * features.nbytes + IMAGE_TENSORS * image.nbytes


def _image(frame: Frame, device: torch.device) -> Tensor:
    image = torch.zeros(1, frame.channels, frame.height, frame.width, device=device)
    return image.contiguous(memory_format=torch.channels_last).requires_grad_()


def _evaluate(cut: nn.Module, image: Tensor, bounds: Bounds | None, precision: torch.dtype) -> Tensor:
    features: Tensor
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        if isinstance(cut, Watched):
            features, _ = cut.watch(image, [bounds] * len(image), torch.ones(len(image), device=image.device))
        else:
            features = cut(image)
    torch.autograd.grad(features, image, torch.ones_like(features))
    return features.detach()
