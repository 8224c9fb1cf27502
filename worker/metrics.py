"""What X̂ does to the network's layer, measured: SSIM, MSE, leakage, sparsity (definitions: docs/method.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.schemas import Losses, Metrics
from worker.suppression import Losses as BatchLosses
from worker.suppression import PixelSpace
from worker.suppression.likeness import WINDOW, ssim, window_for


def likeness(
    after: Tensor, before: Tensor, *, data_range: float | None = None, window: int | None = None, padding: int = 0
) -> float | None:
    """SSIM of two maps (h, w) in float64; None on a map of one position or line.

    Args:
        data_range: max(F) of the map before, unless given.
        window: side of the window, the largest that fits unless given.
        padding: zeros around the maps.
    """
    window = window or window_for(*before.shape)
    if window is None:
        return None
    a, b = after[None].cpu().double(), before[None].cpu().double()
    span = b.amax(dim=(1, 2)) if data_range is None else torch.tensor([data_range], dtype=torch.float64)
    return float(ssim(a, b, data_range=span, window=window, padding=padding))


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
        ssim=likeness(kept, selected),
        ssim_window=window,
        ssim_paper=likeness(kept, selected, data_range=1.0, window=WINDOW, padding=WINDOW // 2) if window else None,
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
    return space.weighed(picture).abs().mean(dim=(1, 2, 3))


def _without(maps: Tensor, kernel: int) -> Tensor:
    """The maps of the other kernels, (C−1, h, w), in float64."""
    keep = torch.arange(len(maps), device=maps.device) != kernel
    return maps[keep].double()
