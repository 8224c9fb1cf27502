"""How much of the processor's arithmetic an evaluation uses."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from shared import images


def operations(cut: nn.Module, frame: images.Frame) -> float:
    """Multiplications and additions of the convolutions in the forward pass and the input's gradient."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += 2 * 2 * module.weight[0].numel() * output.numel()

    device = next(cut.parameters()).device
    hooks = [module.register_forward_hook(count) for module in cut.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad():
            cut(torch.zeros(1, frame.channels, frame.height, frame.width, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return float(total)


_peaks: dict[torch.dtype, float] = {}


def peak(precision: torch.dtype, side: int = 3072) -> float:
    """Operations per second of a matrix product in this precision, the best of five."""
    if precision not in _peaks:
        matrix = torch.randn(side, side).to(precision)
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - begin)
        _peaks[precision] = 2 * side**3 / best
    return _peaks[precision]
