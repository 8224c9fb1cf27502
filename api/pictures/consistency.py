"""Does a kernel respond to the same thing in all images? Two scores of the pictures of a job (docs/evidence.md).

An X̂ is described by its small windows, independent of their places: for windows v of 5 × 5 positions, at the layer's
stride, the moments

    μ = Σ ‖v‖ v / Σ ‖v‖²      M = Σ v vᵀ / Σ ‖v‖²

describe which colours and patterns occur, each weighted by how much it differs from the mean colour. The similarity s
of two pictures is the cosine of their (μ, M).

    consistency of a kernel       the mean of s over all pairs of images
    discrimination of a kernel    how often its X̂ is more similar to its own X̂ on another image than to another
                                  kernel's X̂ on the same image: 0.5 by chance, 1 if the kernel decides and not the image
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Maps = NDArray[np.floating[Any]]
Description = NDArray[np.float64]

WINDOW = 5


def description(x: Maps, stride: int) -> Description | None:
    """(μ, M) of an X̂, normalised to length 1; None if it is the mean colour everywhere.

    Args:
        x: X̂, (3, H, W) or (1, H, W) for grey input, normalised: 0 is the mean colour.
        stride: input pixels between neighbouring positions of the layer.
    """
    channels, height, width = x.shape
    stride = min(stride, height, width)
    rows, columns = height // stride, width // stride
    trimmed = x[:, : rows * stride, : columns * stride].astype(np.float64)
    small = trimmed.reshape(channels, rows, stride, columns, stride).mean(axis=(2, 4))
    side = min(WINDOW, rows, columns)
    windows = (
        sliding_window_view(small, (side, side), axis=(1, 2)).transpose(1, 2, 0, 3, 4).reshape(-1, channels * side**2)
    )
    norms = np.linalg.norm(windows, axis=1)
    total = float((norms**2).sum())
    if total == 0:
        return None
    first, second = norms @ windows / total, windows.T @ windows / total
    both: Description = np.concatenate([first, second.ravel()])
    return both / float(np.linalg.norm(both))


def likeness(one: Description, other: Description) -> float:
    """The similarity of two pictures, at most 1."""
    return float(one @ other)


def consistency(pictures: Mapping[int, Description]) -> float | None:
    """The score of one kernel's X̂ on several images; None for fewer than two."""
    found = [likeness(one, other) for one, other in combinations(pictures.values(), 2)]
    return fmean(found) if found else None


def discrimination(own: Mapping[int, Description], others: Sequence[Mapping[int, Description]]) -> float | None:
    """The score of one kernel among others, all on several images; None if there is nothing to compare.

    Args:
        own: the descriptions of the kernel's X̂, by image.
        others: those of the other kernels.
    """
    wins: list[float] = []
    for image, picture in own.items():
        alike = [likeness(picture, mate) for other, mate in own.items() if other != image]
        unlike = [likeness(picture, rival[image]) for rival in others if image in rival]
        wins += [_beats(mate, rival) for mate in alike for rival in unlike]
    return fmean(wins) if wins else None


def _beats(mate: float, rival: float) -> float:
    return 0.5 if mate == rival else float(mate > rival)
