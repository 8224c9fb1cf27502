"""The metrics of X̂: SSIM, MSE, leakage, sparsity (definitions: docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.schemas import Losses, Metrics
from worker.methods.suppression import BatchLosses, PixelSpace, for_float64
from worker.methods.suppression.ssim import WINDOW, dynamic_range, ssim, window_for


def map_ssim(
    after: Tensor, before: Tensor, *, data_range: float | None = None, window: int | None = None, padding: int = 0
) -> float | None:
    """SSIM of two maps (h, w), in float64; None for maps with a side of 1 or 2.

    Args:
        data_range: by default max F of the map before, or max F − min F where it has a sign.
        window: the side of the window; by default the largest that fits, at most 11.
        padding: zeros around the maps.
    """
    found = map_ssims(after[None], before[None], data_range=data_range, window=window, padding=padding)
    return found[0]


def map_ssims(
    after: Tensor, before: Tensor, *, data_range: float | None = None, window: int | None = None, padding: int = 0
) -> list[float | None]:
    """`map_ssim` of each pair of maps, (B, h, w)."""
    window = window or window_for(*before.shape[1:])
    if window is None:
        return [None] * len(before)
    a, b = for_float64(after).double(), for_float64(before).double()
    known = dynamic_range(b) if data_range is None else torch.full_like(b[:, 0, 0], data_range)
    found: list[float | None] = ssim(a, b, data_range=known, window=window, padding=padding).tolist()
    return found


def metrics(before: Tensor, after: Tensor, kernel: Tensor, picture: Tensor, space: PixelSpace) -> list[Metrics]:
    """The metrics of each X̂, without those of the invention.

    Args:
        before, after: feature maps F and F̂ of the whole layer, (B, C, h, w), float32.
        kernel: the selected kernel i of each, (B,).
        picture: X̂ in 8 bits, (B, 3, H, W) uint8.
        space: of the network's input.
    """
    before, after, kernel, picture = map(for_float64, (before, after, kernel, picture))
    rows = torch.arange(len(kernel), device=before.device)
    selected, modified = before[rows, kernel], after[rows, kernel]  # (B, h, w)
    window = window_for(*selected.shape[1:])
    sums, squares = (_sums_of_others(measure, before, after, rows, kernel) for measure in (torch.abs, torch.square))
    count = (before.shape[1] - 1) * selected[0].numel()
    mean_colour = (picture == space.mean_bytes.to(picture.device)).all(dim=1).double().mean(dim=(1, 2))
    plain = map_ssims(modified, selected)
    papers = map_ssims(modified, selected, data_range=1.0, window=WINDOW, padding=WINDOW // 2) if window else plain
    error = (modified.double() - selected.double()).square().mean(dim=(1, 2))
    leakage = torch.where(sums[0] > 0, sums[1] / sums[0], 0)
    numbers = torch.stack([squares[1] / count, squares[0] / count, error, leakage, mean_colour]).T.tolist()
    return [
        Metrics(
            ssim=own,
            ssim_window=window,
            ssim_paper=papers_own,
            mse_others=after_others,
            mse_others_before=before_others,
            mse_selected=of_selected,
            leakage=share,
            sparsity=sparsity,
        )
        for own, papers_own, (after_others, before_others, of_selected, share, sparsity) in zip(
            plain, papers, numbers, strict=True
        )
    ]


def as_records(rows: BatchLosses) -> list[Losses]:
    """A batch's losses as records of the API."""
    terms = torch.stack([rows.preservation, rows.suppression, rows.regularization, rows.total], dim=1).tolist()
    return [
        Losses(preservation=preservation, suppression=suppression, regularization=regularization, total=total)
        for preservation, suppression, regularization, total in terms
    ]


def png_regularization(picture: Tensor, space: PixelSpace) -> Tensor:
    """L_r of 8-bit pictures, (B, 3, H, W) → (B,), where a byte equal to the rounded mean colour is 0."""
    return space.weighed(picture).abs().mean(dim=(1, 2, 3))


def _sums_of_others(
    measure: Callable[[Tensor], Tensor], before: Tensor, after: Tensor, rows: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor]:
    """The sums over the maps of all kernels but the selected one, before and after, (B,) each, in float64."""
    found = []
    for maps in (before, after):
        each = measure(maps).sum(dim=(2, 3), dtype=torch.float64)  # (B, C)
        each[rows, kernel] = 0
        found.append(each.sum(dim=1))
    return found[0], found[1]
