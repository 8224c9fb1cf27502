"""How what is invented is pulled down: a watched layer's maps forth, and γ·L_e's gradient on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Span = tuple[int, int]  # rows of a batch, from and to, that share their bounds
Limit = tuple[Tensor, Tensor | None]  # b⁺, and b⁻ where maps have a sign, (1, C, h, w) each


class Hinge(torch.autograd.Function):
    """ReLU, and on the way back a pull wherever it is above its limit."""

    @staticmethod
    def forward(ctx: Any, before_relu: Tensor, limits: Sequence[tuple[Span, Limit]], pull: Tensor) -> Tensor:
        """F = max(Z, 0)."""
        maps = torch.relu(before_relu)
        ctx.save_for_backward(maps, pull, *(high for _, (high, _) in limits))
        ctx.spans = [span for span, _ in limits]
        return maps

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """What comes from above, and the pull."""
        maps, pull, *limits = ctx.saved_tensors
        weights = _broad(pull, slope)
        if ctx.spans == [(0, len(maps))]:
            return _gated(_pulled(slope, maps, limits[0], weights), maps), None, None
        slope = slope.clone()
        for (start, end), limit in zip(ctx.spans, limits, strict=True):
            rows = slice(start, end)
            slope[rows] = _pulled(slope[rows], maps[rows], limit, weights[rows])
        return _gated(slope, maps), None, None


class Pull(torch.autograd.Function):
    """The same maps, and on the way back a pull wherever they are outside their limits."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, limits: Sequence[tuple[Span, Limit]], pull: Tensor) -> Tensor:
        """The maps."""
        ctx.save_for_backward(maps, pull, *chain.from_iterable(limit for _, limit in limits))
        ctx.spans = [span for span, _ in limits]
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """What comes from above, and the pull."""
        maps, pull, *limits = ctx.saved_tensors
        weights, slope = _broad(pull, slope), slope.clone()
        for (start, end), high, low in zip(ctx.spans, limits[::2], limits[1::2], strict=True):
            rows = slice(start, end)
            found = _pulled(slope[rows], maps[rows], high, weights[rows])
            slope[rows] = _pulled(found, low, maps[rows], -weights[rows])
        return slope, None, None


def _pulled(slope: Tensor, maps: Tensor, limit: Tensor, weights: Tensor) -> Tensor:
    """Weights are added where maps > limit. On the CPU a comparison into a tensor of bools takes six times as long."""
    above = torch.gt(maps, limit, out=torch.empty_like(slope, dtype=maps.dtype)).to(slope.dtype)
    return torch.addcmul(slope, above, weights)


def _gated(slope: Tensor, maps: Tensor) -> Tensor:
    """The way back through the ReLU."""
    gated: Tensor = torch.ops.aten.threshold_backward(slope, maps, 0)
    return gated


def _broad(rows: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1), in the dtype of the other."""
    return rows.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
