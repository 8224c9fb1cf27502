"""The gradient of γ·L_e: autograd functions that return an activation and add the hinge's subgradient on the way back.

For a tapped layer with maps ĥ, bounds b and the weight w = γ / (D·Σ |h_d|), the backward pass adds
w·[ĥ > b⁺] − w·[ĥ < b⁻] to the gradient with respect to ĥ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Span = tuple[int, int]  # the rows start to end of a batch, which share their bounds
LayerBounds = tuple[Tensor, Tensor | None]  # b⁺, and b⁻ where maps have a sign, (1, C, h, w) each


class HingedReLU(torch.autograd.Function):
    """ReLU whose backward pass adds the hinge's subgradient, for maps without a sign (no b⁻)."""

    @staticmethod
    def forward(ctx: Any, before_relu: Tensor, bounds: Sequence[tuple[Span, LayerBounds]], weight: Tensor) -> Tensor:
        """F = max(Z, 0); `weight` is w of each row, (B,)."""
        maps = torch.relu(before_relu)
        ctx.save_for_backward(maps, weight, *(high for _, (high, _) in bounds))
        ctx.spans = [span for span, _ in bounds]
        return maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to Z."""
        maps, weight, *bounds = ctx.saved_tensors
        weights = _broadcast(weight, gradient)
        if ctx.spans == [(0, len(maps))]:
            return _through_relu(_add_where_above(gradient, maps, bounds[0], weights), maps), None, None
        gradient = gradient.clone()
        for (start, end), bound in zip(ctx.spans, bounds, strict=True):
            rows = slice(start, end)
            gradient[rows] = _add_where_above(gradient[rows], maps[rows], bound, weights[rows])
        return _through_relu(gradient, maps), None, None


class Hinged(torch.autograd.Function):
    """The identity whose backward pass adds the hinge's subgradient, for maps that may have a sign."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, bounds: Sequence[tuple[Span, LayerBounds]], weight: Tensor) -> Tensor:
        """The maps; `weight` is w of each row, (B,)."""
        ctx.save_for_backward(maps, weight, *chain.from_iterable(bound for _, bound in bounds))
        ctx.spans = [span for span, _ in bounds]
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient with respect to the maps."""
        maps, weight, *bounds = ctx.saved_tensors
        weights, gradient = _broadcast(weight, gradient), gradient.clone()
        for (start, end), high, low in zip(ctx.spans, bounds[::2], bounds[1::2], strict=True):
            rows = slice(start, end)
            found = _add_where_above(gradient[rows], maps[rows], high, weights[rows])
            gradient[rows] = _add_where_above(found, low, maps[rows], -weights[rows])
        return gradient, None, None


def _add_where_above(gradient: Tensor, maps: Tensor, bound: Tensor, weights: Tensor) -> Tensor:
    """Gradient + weights·[maps > bound]. On the CPU a comparison whose output is bool takes six times as long."""
    above = torch.gt(maps, bound, out=torch.empty_like(gradient, dtype=maps.dtype)).to(gradient.dtype)
    return torch.addcmul(gradient, above, weights)


def _through_relu(gradient: Tensor, maps: Tensor) -> Tensor:
    """The ReLU's backward pass."""
    gated: Tensor = torch.ops.aten.threshold_backward(gradient, maps, 0)
    return gated


def _broadcast(rows: Tensor, like: Tensor) -> Tensor:
    """(B,) → (B, 1, …, 1), in the dtype of `like`."""
    return rows.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
