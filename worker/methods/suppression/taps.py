"""What is watched below a layer: activation that X̂ causes and X did not, and how it is pulled down.

For the D ReLU layers below the chosen one, with their maps ĥ_d of X̂ and h_d of X and a bound b_d for each neuron:

    L_e = (1/D) · Σ_d  Σ max(ĥ_d − b_d, 0) / Σ h_d           "invention": 0 where X̂ excites nothing beyond the bounds

What is reported has b_d = h_d(X). What is optimised has b_d = max(h_d(X), h_d(0)), with the blank picture 0: a neuron
that answers to the mean colour itself is not invented where something is cleared away. A layer that X leaves silent
(Σ h_d = 0) counts 0, and so does everything where there is no ReLU below (D = 0).

Of γ·L_e the subgradient at ĥ_d is γ / (D·Σ h_d) where ĥ_d > b_d: a comparison and an addition on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn

Span = tuple[int, int]  # rows of a batch, from and to, that share their bounds


@dataclass(frozen=True, eq=False)
class Bounds:
    """How active each neuron below the layer may be, for X̂ of one image. Problems of the image share it."""

    limits: tuple[Tensor, ...]  # b_d, (1, C, h, w) each, in the order in which the layers run
    sums: Tensor  # Σ b_d, (D,)
    scale: Tensor  # 1 / (D·Σ h_d), (D,); 0 for a layer that X leaves silent


class Watched(nn.Module):
    """A network whose ReLUs can be watched. It shares the parameters of `network`, which is not changed.

    Called as a module it is that network. It is one thread's.

    Args:
        network: images (B, 3, H, W) → Z (B, C, h, w), its ReLUs modules.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        self.network = deepcopy(network, shared)  # new modules around the same tensors
        self._see: Callable[[Tensor], Tensor] | None = None
        self._blank: dict[torch.dtype, list[Tensor]] = {}  # h_d(0), by the precision of the evaluations
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, _Tap(self))

    def forward(self, images: Tensor) -> Tensor:
        """Z of the images."""
        before_relu: Tensor = self.network(images)
        return before_relu

    @torch.no_grad()
    def bounds(self, image: Tensor, precision: torch.dtype) -> Bounds:
        """max(h_d(X), h_d(0)) of one image X (1, 3, H, W), in the precision of the evaluations."""
        kind = image.dtype
        with torch.autocast(image.device.type, precision, enabled=precision is torch.bfloat16):
            maps = self._maps(image)
            if precision not in self._blank:
                self._blank[precision] = self._maps(torch.zeros_like(image))
            blank = self._blank[precision]
        limits = tuple(torch.maximum(one, other) for one, other in zip(maps, blank, strict=True))
        sums = image.new_tensor([float(_sum(one, kind)) for one in maps])
        scale = torch.where(sums > 0, 1 / (len(maps) * sums), 0)
        return Bounds(limits, image.new_tensor([float(_sum(limit, kind)) for limit in limits]), scale)

    def watch(self, images: Tensor, bounds: Sequence[Bounds | None], strength: Tensor) -> tuple[Tensor, Tensor]:
        """Z of the images and L_e of each, (B,), against its bounds.

        On the way back the gradient of strength·L_e with respect to each ĥ_d is added to what comes from Z.

        Args:
            bounds: of each row; a row without is not watched, and its L_e is 0.
            strength: γ of each row, (B,), in the unit of the gradient that comes from Z.
        """
        spans = list(_spans(bounds))
        excess = torch.zeros_like(strength)
        depth = iter(range(max((len(found.limits) for _, found in spans), default=0)))

        def see(before_relu: Tensor) -> Tensor:
            layer = next(depth)
            limits = [(span, found.limits[layer]) for span, found in spans]
            pull = torch.zeros_like(strength)
            for (start, end), found in spans:
                pull[start:end] = strength[start:end] * found.scale[layer]
            maps: Tensor = _Hinge.apply(before_relu, limits, pull)
            for (start, end), found in spans:
                most = torch.maximum(maps.detach()[start:end], found.limits[layer])
                over = _sum(most, strength.dtype) - found.sums[layer]  # Σ max(ĥ, b) − Σ b
                excess[start:end] += over.clamp_min(0) * found.scale[layer]
            return maps

        with self._seeing(see):
            return self.network(images), excess

    @torch.no_grad()
    def invention(self, originals: Tensor, images: Tensor, of: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Z of the blank picture and of images, and what each image invents: Σ max(ĥ_d − b_d, 0) / Σ h_d of each layer.

        Args:
            originals: (R, 3, H, W), each an X.
            images: (B, 3, H, W).
            of: which X each image is of.

        Returns:
            Z, (1 + B, C, h, w), the blank picture's first; (B, D) against b_d = h_d(X), whose mean over the layers is
            L_e as it is reported; and (B, D) against max(h_d(X), h_d(0)), as evidence has it.
        """
        count = 1 + len(originals)
        shares: list[Tensor] = []

        def see(before_relu: Tensor) -> Tensor:
            maps = before_relu.clamp_min(0)
            blank, known, theirs = maps[0], maps[1:count], maps[count:]
            whole = _sum(known, images.dtype)[list(of)]
            found = []
            for bounds in (known, torch.maximum(known, blank)):
                pairs = zip(theirs, of, strict=True)
                excess = torch.stack(
                    [(one - bounds[number]).clamp_min_(0).sum(dtype=images.dtype) for one, number in pairs]
                )
                found.append(torch.where(whole > 0, excess / whole, 0))
            shares.append(torch.stack(found))
            return maps

        with self._seeing(see):
            seen = self.network(torch.cat([torch.zeros_like(originals[:1]), originals, images]))
        before_relu = torch.cat([seen[:1], seen[count:]])
        if not shares:
            nothing = images.new_zeros(len(images), 0)
            return before_relu, nothing, nothing
        alone, beyond = torch.stack(shares, dim=2)
        return before_relu, alone, beyond

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []

        def see(before_relu: Tensor) -> Tensor:
            maps.append(before_relu.clamp_min(0))
            return maps[-1]

        with self._seeing(see):
            self.network(images)
        return maps

    @contextmanager
    def _seeing(self, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Each ReLU is `see` meanwhile."""
        self._see = see
        try:
            yield
        finally:
            self._see = None

    def relu(self, before_relu: Tensor) -> Tensor:
        """What a tap does."""
        return torch.relu(before_relu) if self._see is None else self._see(before_relu)


class _Tap(nn.Module):
    """A ReLU of a watched network."""

    def __init__(self, owner: Watched) -> None:
        super().__init__()
        self._relu = owner.relu  # a bound method: the owner does not become a child

    def forward(self, before_relu: Tensor) -> Tensor:
        return self._relu(before_relu)


class _Hinge(torch.autograd.Function):
    """ReLU, and on the way back a pull wherever it is above its limit."""

    @staticmethod
    def forward(ctx: Any, before_relu: Tensor, limits: Sequence[tuple[Span, Tensor]], pull: Tensor) -> Tensor:
        maps = torch.relu(before_relu)
        ctx.save_for_backward(maps, pull, *(limit for _, limit in limits))
        ctx.spans = [span for span, _ in limits]
        return maps

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        maps, pull, *limits = ctx.saved_tensors
        weights = pull.to(slope.dtype)[:, None, None, None]
        if ctx.spans == [(0, len(maps))]:
            return _gated(_pulled(slope, maps, limits[0], weights), maps), None, None
        slope = slope.clone()
        for (start, end), limit in zip(ctx.spans, limits, strict=True):
            rows = slice(start, end)
            slope[rows] = _pulled(slope[rows], maps[rows], limit, weights[rows])
        return _gated(slope, maps), None, None


def _pulled(slope: Tensor, maps: Tensor, limit: Tensor, weights: Tensor) -> Tensor:
    """Weights are added where maps > limit. On the CPU a comparison into a tensor of bools takes six times as long."""
    above = torch.gt(maps, limit, out=torch.empty_like(maps)).to(slope.dtype)
    return torch.addcmul(slope, above, weights)


def _gated(slope: Tensor, maps: Tensor) -> Tensor:
    """The way back through the ReLU."""
    gated: Tensor = torch.ops.aten.threshold_backward(slope, maps, 0)
    return gated


def _spans(bounds: Sequence[Bounds | None]) -> Iterator[tuple[Span, Bounds]]:
    """Neighbouring rows with the same bounds."""
    start = 0
    for _, run in groupby(bounds, key=id):
        rows = list(run)
        if rows[0] is not None:
            yield (start, start + len(rows)), rows[0]
        start += len(rows)


def _sum(maps: Tensor, kind: torch.dtype) -> Tensor:
    """Of each row, (B,), in the dtype of the image."""
    total: Tensor = maps.sum(dim=(1, 2, 3), dtype=kind)
    return total
