"""How fast a cut network runs here, measured when it is first used: its precision and its batch size follow."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

log = logging.getLogger(__name__)

STEP_SECONDS = 0.4  # a batch's step stays under this, so that a cancelled job answers within a second
LARGEST_BATCH = 16
WORTH_IT = 0.85  # bfloat16 is used where it takes less than this share of float32's time


@dataclass(frozen=True)
class Pace:
    """The outcome of the measurement."""

    precision: torch.dtype
    seconds: float  # of one gradient evaluation of one problem
    batch: int  # problems to run together


_measured: WeakKeyDictionary[nn.Module, Pace] = WeakKeyDictionary()


def pace(cut: nn.Sequential, size: int, device: torch.device) -> Pace:
    """Measure once for a layer."""
    if cut not in _measured:
        single, half = (_seconds(cut, size, device, dtype) for dtype in (torch.float32, torch.bfloat16))
        precision, seconds = (torch.bfloat16, half) if half < WORTH_IT * single else (torch.float32, single)
        batch = max(1, min(LARGEST_BATCH, int(STEP_SECONDS / seconds)))
        _measured[cut] = Pace(precision, seconds, batch)
        log.info("one evaluation: float32 %.1f ms, bfloat16 %.1f ms; batches of %d", 1e3 * single, 1e3 * half, batch)
    return _measured[cut]


def _seconds(cut: nn.Sequential, size: int, device: torch.device, precision: torch.dtype) -> float:
    """The faster of two evaluations after one to warm up."""
    image = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    best = float("inf")
    for trial in range(3):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            features = cut(image)
        torch.autograd.grad(features, image, torch.ones_like(features))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if trial:
            best = min(best, time.perf_counter() - begin)
    return best
