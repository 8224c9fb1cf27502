"""Speed and memory of a cut network on this device, measured when it is first used.

They decide the precision of its evaluations, and the size of its batches.
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
from worker.engine.accelerator import free_memory, has_bfloat16
from worker.methods.suppression import ActivationBounds, TappedNetwork
from worker.networks.failures import out_of_memory

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
STEP_SECONDS = 0.4  # the longest step of a batch, so that a job can be cancelled within a second
LARGEST_BATCH = {"cpu": 16, "cuda": 512}  # larger ones are no faster
MEASURED_BATCH = {"cuda": 32}  # in which the time of an evaluation is measured
FASTER = 0.85  # bfloat16 is used if it takes less than this fraction of float32's time
EMULATED = 5  # times float32's time: bfloat16 is emulated
PROBE = Frame(28, 28, 3)
MEMORY_FRACTION = 0.8  # of the free memory that batches may use
TRANSIENT = 0.6  # of a problem's bytes that are allocated during a step only
LAYER_TENSORS = 6  # of the layer's size that a solver allocates
IMAGE_TENSORS = 12  # of the image's size


@dataclass(frozen=True)
class Speed:
    """The result of the measurement."""

    precision: torch.dtype
    seconds: float  # of one gradient evaluation of one problem
    bytes: int  # of one problem during a step
    batch: int  # problems of a first batch
    most: int  # problems of a batch whose steps are short enough


_measured: WeakKeyDictionary[nn.Module, Speed] = WeakKeyDictionary()


def measured_speed(cut: nn.Module, frame: Frame, device: torch.device) -> Speed:
    """Measure a cut network once; later calls return the same."""
    if cut not in _measured:
        single = _seconds(cut, frame, device, torch.float32)
        half = inf if emulated(device) else _seconds(cut, frame, device, torch.bfloat16, EMULATED * single)
        faster = half < FASTER * single or has_bfloat16(device)
        precision, seconds = (torch.bfloat16, half) if faster else (torch.float32, single)
        most = LARGEST_BATCH.get(device.type, 64)
        batch = max(1, min(most, int(STEP_SECONDS / seconds)))
        _measured[cut] = Speed(precision, seconds, _bytes(cut, frame, device), batch, most)
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
    """Whether this is a CPU without bfloat16 instructions, measured with a small network in a tenth of a second.

    There an evaluation of a large network could take a minute, and the device would seem to hang.
    """
    if device.type != "cpu":
        return False
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    network = network.requires_grad_(False).to(memory_format=torch.channels_last)
    single, half = (_timed(network, PROBE, device, kind, 1, inf) for kind in (torch.float32, torch.bfloat16))
    return half > EMULATED * single


def room_in_memory(speed: Speed, device: torch.device, running: int = 0) -> int:
    """How many more problems fit into the free memory beside `running` ones.

    Between two steps a card's free memory includes what the running problems need during a step, which is subtracted.
    On the CPU it does not, since malloc keeps the blocks.
    """
    reserved = int(TRANSIENT * speed.bytes) * running if device.type == "cuda" else 0
    return max(0, int((MEMORY_FRACTION * _free(device) - reserved) / speed.bytes))


def _free(device: torch.device) -> int:
    """Free bytes of the card, or of the machine and the container."""
    if device.type == "cuda":
        return free_memory(device)
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(stat.get("inactive_file", 0)))  # the page cache can be reclaimed
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return int(free)


def _seconds(cut: nn.Module, frame: Frame, device: torch.device, precision: torch.dtype, limit: float = inf) -> float:
    """Seconds of one problem. On a card many are evaluated together, since one alone would measure kernel launches."""
    rows = MEASURED_BATCH.get(device.type, 1)
    while True:
        try:
            return _timed(cut, frame, device, precision, rows, limit) / rows
        except RuntimeError as error:
            if rows == 1 or not out_of_memory(error):
                raise
        rows //= 2


def _timed(
    cut: nn.Module, frame: Frame, device: torch.device, precision: torch.dtype, rows: int, limit: float
) -> float:
    """The faster of two evaluations after a warm-up, or the warm-up's time if that exceeds `limit` per problem."""
    best, image = inf, _image(frame, device)
    bounds = cut.bounds(image, precision) if isinstance(cut, TappedNetwork) else None
    images = image.detach().repeat(rows, 1, 1, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    for trial in range(3):
        begin = time.perf_counter()
        _evaluate(cut, images, bounds, precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - begin
        if taken > limit * rows:
            return taken
        if trial:
            best = min(best, taken)
    return best


def _bytes(cut: nn.Module, frame: Frame, device: torch.device) -> int:
    """Bytes of one problem: the tensors saved for the backward pass, and the solver's own."""
    known = {parameter.data_ptr() for parameter in cut.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    image = _image(frame, device)
    bounds = cut.bounds(image, torch.float32) if isinstance(cut, TappedNetwork) else None
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        features = _evaluate(cut, image, bounds, torch.float32)
    return sum(saved.values()) + LAYER_TENSORS * features.nbytes + IMAGE_TENSORS * image.nbytes


def _image(frame: Frame, device: torch.device) -> Tensor:
    image = torch.zeros(1, frame.channels, frame.height, frame.width, device=device)
    return image.contiguous(memory_format=torch.channels_last).requires_grad_()


def _evaluate(cut: nn.Module, image: Tensor, bounds: ActivationBounds | None, precision: torch.dtype) -> Tensor:
    features: Tensor
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        if isinstance(cut, TappedNetwork):
            features, _ = cut.forward_with_invention(
                image, [bounds] * len(image), torch.ones(len(image), device=image.device)
            )
        else:
            features = cut(image)
    torch.autograd.grad(features, image, torch.ones_like(features))
    return features.detach()
