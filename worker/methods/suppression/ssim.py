"""SSIM of feature maps (Wang et al. 2004), with a Gaussian window and population covariance."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

WINDOW = 11
SIGMA = 1.5


def ssim(after: Tensor, before: Tensor, *, data_range: Tensor, window: int = WINDOW, padding: int = 0) -> Tensor:
    """Mean SSIM of each pair of maps.

    Args:
        after, before: (B, h, w), each side at least `window`; float64 where the result is reported.
        data_range: L in the constants (0.01·L)² and (0.03·L)², (B,).
        window: the side of the window, odd; its σ is 1.5·window/11.
        padding: zeros around the maps; 0: only windows that fit inside the map count.

    Returns:
        In [−1, 1], (B,).
    """
    rows, columns = (_windows(side, window, padding, before.dtype, before.device) for side in before.shape[1:])
    stack = torch.stack([after, before, after * after, before * before, after * before], dim=1)  # (B, 5, h, w)
    blurred = rows @ stack @ columns.T
    mean_a, mean_b, square_a, square_b, cross = blurred.unbind(1)
    product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    variances, covariance = square_a + square_b - squares, cross - product
    c1, c2 = ((share * data_range[:, None, None]).square() for share in (0.01, 0.03))
    whole = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    mean: Tensor = whole.mean(dim=(1, 2))
    return mean


def dynamic_range(maps: Tensor) -> Tensor:
    """The data range of maps (B, h, w): max F or, where they have a sign, max F − min F, (B,)."""
    return maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2)).clamp_max(0)


def window_for(height: int, width: int) -> int | None:
    """The window's side: 11, or the largest odd side that fits into the map; None for a map with a side of 1 or 2."""
    side = min(height, width, WINDOW)
    odd = side if side % 2 else side - 1
    return odd if odd > 1 else None


@cache
def _windows(side: int, window: int, padding: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of a convolution with one line of the window along a side, (positions, side).

    The window is separable, and in float64 two products with such matrices are several times as fast as a convolution.
    The matrix is cached on the device, since a copy at each evaluation would wait for the device.
    """
    sigma = SIGMA * window / WINDOW
    line = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    length = side + 2 * padding
    positions = torch.stack([_placed(line, start, length) for start in range(length - window + 1)])
    return positions[:, padding : padding + side].contiguous().to(device, dtype)


def _placed(line: Tensor, start: int, length: int) -> Tensor:
    """The line at this position, padded with zeros to this length."""
    return pad(line, (start, length - start - len(line)))
