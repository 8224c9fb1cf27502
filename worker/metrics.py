"""What X̂ does to the network's layer, measured: SSIM, MSE, leakage, sparsity (definitions: docs/method.md)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from shared.schemas import Losses, Metrics
from worker.suppression import Losses as BatchLosses
from worker.suppression import PixelSpace

WINDOW = 11
SIGMA = 1.5


def ssim(after: Tensor, before: Tensor, *, data_range: float, window: int = WINDOW, padding: int = 0) -> float:
    """Mean SSIM of two maps (h, w): Gaussian window, population covariance (Wang et al. 2004).

    Args:
        data_range: the span L in the constants (0.01·L)² and (0.03·L)².
        window: odd side of the window; its σ is 1.5·window/11.
        padding: zeros around the maps; with 0 only windows that fit inside count.
    """
    kernel = _gaussian(window)
    a, b = after.double(), before.double()
    stack = torch.stack([a, b, a * a, b * b, a * b])[:, None]
    mean_a, mean_b, square_a, square_b, cross = conv2d(stack, kernel, padding=padding)[:, 0]
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = cross - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


def window_for(height: int, width: int) -> int | None:
    """11, or the largest odd side that fits into the map; None on a map of one position or line."""
    side = min(height, width, WINDOW)
    odd = side if side % 2 else side - 1
    return odd if odd > 1 else None


def metrics(before: Tensor, after: Tensor, kernel: int, picture: Tensor, space: PixelSpace) -> Metrics:
    """Every metric of one X̂.

    Args:
        before, after: feature maps F and F̂ of the whole layer after the ReLU, (C, h, w), float32.
        kernel: the selected kernel i.
        picture: X̂ in 8 bits, (3, H, W).
    """
    selected, kept = before[kernel].cpu(), after[kernel].cpu()
    window = window_for(*selected.shape)
    others_before, others_after = _without(before, kernel), _without(after, kernel)
    mean_colour = (picture == space.mean_bytes.to(picture.device)).all(dim=0)
    return Metrics(
        ssim=ssim(kept, selected, data_range=float(selected.max()), window=window) if window else None,
        ssim_window=window,
        ssim_paper=ssim(kept, selected, data_range=1.0, padding=WINDOW // 2) if window else None,
        mse_others=float(others_after.square().mean()),
        mse_others_before=float(others_before.square().mean()),
        mse_selected=float((kept.double() - selected.double()).square().mean()),
        leakage=float(others_after.sum() / others_before.sum()),
        sparsity=float(mean_colour.double().mean()),
    )


def as_record(row: BatchLosses, index: int) -> Losses:
    """One row of a batch's losses as the contract has it."""
    return Losses(
        preservation=float(row.preservation[index]),
        suppression=float(row.suppression[index]),
        regularization=float(row.regularization[index]),
        total=float(row.total[index]),
    )


def png_regularization(picture: Tensor, space: PixelSpace) -> Tensor:
    """L_r of pictures in 8 bits, (B, 3, H, W) → (B,): a byte equal to the rounded mean colour counts as zero."""
    x = space.from_bytes(picture)
    return torch.where(picture == space.mean_bytes, 0, x).abs().mean(dim=(1, 2, 3))


def _without(maps: Tensor, kernel: int) -> Tensor:
    """The maps of the other kernels, (C−1, h, w), in float64."""
    keep = torch.arange(len(maps), device=maps.device) != kernel
    return maps[keep].double()


@cache
def _gaussian(window: int) -> Tensor:
    """(1, 1, window, window), sums to 1."""
    sigma = SIGMA * window / WINDOW
    line = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    return (line[:, None] * line[None, :])[None, None]
