"""How alike two feature maps are: SSIM (Wang et al. 2004) with a Gaussian window and population covariance."""

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
        after, before: (B, h, w), at least `window` on either side; float64 for a number that is reported.
        data_range: (B,), the span L in the constants (0.01·L)² and (0.03·L)².
        window: odd side of the window; its σ is 1.5·window/11.
        padding: zeros around the maps; with 0 only windows that fit inside count.

    Returns:
        (B,), at most 1.
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


def span(maps: Tensor) -> Tensor:
    """The data range of maps (B, h, w): max F, or where they have a sign max F − min F."""
    return maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2)).clamp_max(0)


def window_for(height: int, width: int) -> int | None:
    """11, or the largest odd side that fits into the map; None on a map of one position or line."""
    side = min(height, width, WINDOW)
    odd = side if side % 2 else side - 1
    return odd if odd > 1 else None


@cache
def _windows(side: int, window: int, padding: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One line of the window at each place that it has along a side: (places, side), each row at most 1 in sum.

    The window is separable, and two products with such matrices are several times as fast as its convolution in
    float64. Kept on the device: to copy it at each evaluation would wait for that.
    """
    sigma = SIGMA * window / WINDOW
    line = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    places = torch.stack([_placed(line, start, side + 2 * padding) for start in range(side + 2 * padding - window + 1)])
    return places[:, padding : padding + side].contiguous().to(device, dtype)


def _placed(line: Tensor, start: int, length: int) -> Tensor:
    """The line at a place among zeros."""
    return pad(line, (start, length - start - len(line)))
