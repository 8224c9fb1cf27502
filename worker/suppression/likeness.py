"""How alike two feature maps are: SSIM (Wang et al. 2004) with a Gaussian window and population covariance."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d

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
    kernel = _gaussian(window, before.dtype, before.device)
    stack = torch.stack([after, before, after * after, before * before, after * before], dim=1)  # (B, 5, h, w)
    blurred = conv2d(stack.flatten(0, 1)[:, None], kernel, padding=padding).unflatten(0, (-1, 5))[:, :, 0]
    mean_a, mean_b, square_a, square_b, cross = blurred.unbind(1)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = cross - mean_a * mean_b
    c1, c2 = ((share * data_range[:, None, None]) ** 2 for share in (0.01, 0.03))
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    whole = likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    mean: Tensor = whole.mean(dim=(1, 2))
    return mean


def window_for(height: int, width: int) -> int | None:
    """11, or the largest odd side that fits into the map; None on a map of one position or line."""
    side = min(height, width, WINDOW)
    odd = side if side % 2 else side - 1
    return odd if odd > 1 else None


@cache
def _gaussian(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, window, window), sums to 1. Kept on the device: to copy it at each evaluation would wait for that."""
    sigma = SIGMA * window / WINDOW
    line = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * sigma**2))
    line = line / line.sum()
    return (line[:, None] * line[None, :])[None, None].to(device, dtype)
