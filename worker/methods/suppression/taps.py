"""What is watched below a layer: activation that X̂ causes and X did not, and how it is pulled down.

For the D layers below the chosen one that follow an activation, with their maps ĥ_d of X̂ and h_d of X and a bound b_d
for each neuron:

    L_e = (1/D) · Σ_d  Σ max(ĥ_d − b_d, 0) / Σ h_d           "invention": 0 where X̂ excites nothing beyond the bounds

What is reported has b_d = h_d(X). What is optimised has b_d = max(h_d(X), h_d(0)), with the blank picture 0: a neuron
that answers to the mean colour itself is not invented where something is cleared away. A layer that X leaves silent
(Σ h_d = 0) counts 0, and so does everything where nothing is watched below (D = 0).

Where maps have a sign, after another activation than ReLU or an addition that none follows, there is a bound on either
side, b⁺ = max(h_d, 0) and b⁻ = min(h_d, 0), the wider of X's and the blank picture's where that counts:

    Σ [ max(ĥ_d − b⁺_d, 0) + max(b⁻_d − ĥ_d, 0) ] / Σ |h_d|

Of γ·L_e the subgradient at ĥ_d is γ / (D·Σ |h_d|) where ĥ_d > b_d, its negative where ĥ_d < b⁻_d: a comparison and an
addition on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor, nn

from worker.methods.suppression.pulls import Hinge, Limit, Pull, Span


class Sum(nn.Identity):
    """Behind an addition that no activation follows: its maps are watched too."""


class Last(nn.Module):
    """An activation that is not watched: the layer itself, of which the others are below."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._activation = (activation,)  # no child, which would be found

    def forward(self, value: Tensor) -> Tensor:
        """φ(Z)."""
        maps: Tensor = self._activation[0](value)
        return maps


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish),
    *(nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus),
)


@dataclass(frozen=True, eq=False)
class Bounds:
    """How active each neuron below the layer may be, for X̂ of one image. Problems of the image share it."""

    limits: tuple[Limit, ...]  # in the order in which the layers run
    sums: Tensor  # Σ b⁺_d − Σ b⁻_d, (D,)
    scale: Tensor  # 1 / (D·Σ |h_d|), (D,); 0 for a layer that X leaves silent


class Watched(nn.Module):
    """A network whose activations can be watched. It shares the parameters of `network`, which is not changed.

    Called as a module it is that network. It is one thread's.

    Args:
        network: images (B, 3, H, W) → Z (B, C, h, w), its activations modules.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        self.network = deepcopy(network, shared)  # new modules around the same tensors
        self._see: Callable[[Tensor, nn.Module], Tensor] | None = None
        self._blank: dict[torch.dtype, list[Limit]] = {}  # of h_d(0), by the precision of the evaluations
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, (*ACTIVATIONS, Sum)):
                    setattr(module, name, _Tap(self, child))

    def forward(self, images: Tensor) -> Tensor:
        """Z of the images."""
        before_relu: Tensor = self.network(images)
        return before_relu

    @torch.no_grad()
    def bounds(self, image: Tensor, precision: torch.dtype) -> Bounds:
        """max(h_d(X), h_d(0)) of one image X (1, 3, H, W), in the precision of the evaluations."""
        kind = image.dtype
        with torch.autocast(image.device.type, precision, enabled=precision is torch.bfloat16):
            own, sums = self._limits(image)
            if precision not in self._blank:
                self._blank[precision], _ = self._limits(torch.zeros_like(image))
            limits = tuple(_wider(one, other) for one, other in zip(own, self._blank[precision], strict=True))
        known = image.new_tensor(sums)
        scale = torch.where(known > 0, 1 / (len(limits) * known), 0)
        return Bounds(limits, image.new_tensor([_span(limit, kind) for limit in limits]), scale)

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

        def see(value: Tensor, activation: nn.Module) -> Tensor:
            layer = next(depth)
            limits = [(span, found.limits[layer]) for span, found in spans]
            pull = torch.zeros_like(strength)
            for (start, end), found in spans:
                pull[start:end] = strength[start:end] * found.scale[layer]
            relu = isinstance(activation, nn.ReLU)
            maps: Tensor = Hinge.apply(value, limits, pull) if relu else Pull.apply(activation(value), limits, pull)
            for (start, end), found in spans:
                high, low = found.limits[layer]
                own = maps.detach()[start:end]
                over = _sum(torch.maximum(own, high), strength.dtype) - found.sums[layer]  # Σ max(ĥ, b) − Σ b
                if low is not None:
                    over = over - _sum(torch.minimum(own, low), strength.dtype)
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

        def see(value: Tensor, activation: nn.Module) -> Tensor:
            maps = _seen(value, activation)
            blank, known, theirs = maps[:1], maps[1:count], maps[count:]
            whole = _sum(known.abs(), images.dtype)[list(of)]
            alone, empty = _limit(known, activation), _limit(blank, activation)
            found = []
            for limit in (alone, _wider(alone, empty)):
                excess = torch.stack(
                    [_beyond(one, limit, number, images.dtype) for one, number in zip(theirs, of, strict=True)]
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

    def _limits(self, image: Tensor) -> tuple[list[Limit], list[float]]:
        """b_d of one image, and Σ |h_d|."""
        limits: list[Limit] = []
        sums: list[float] = []

        def see(value: Tensor, activation: nn.Module) -> Tensor:
            maps = _seen(value, activation)
            limits.append(_limit(maps, activation))
            sums.append(float(_sum(maps.abs(), image.dtype)))
            return maps

        with self._seeing(see):
            self.network(image)
        return limits, sums

    @contextmanager
    def _seeing(self, see: Callable[[Tensor, nn.Module], Tensor]) -> Iterator[None]:
        """Each activation is `see` meanwhile."""
        self._see = see
        try:
            yield
        finally:
            self._see = None

    def passed(self, value: Tensor, activation: nn.Module) -> Tensor:
        """What a tap does."""
        maps: Tensor = activation(value) if self._see is None else self._see(value, activation)
        return maps


class _Tap(nn.Module):
    """An activation of a watched network."""

    def __init__(self, owner: Watched, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self._passed = owner.passed  # a bound method: the owner does not become a child

    def forward(self, value: Tensor) -> Tensor:
        return self._passed(value, self.activation)


def _spans(bounds: Sequence[Bounds | None]) -> Iterator[tuple[Span, Bounds]]:
    """Neighbouring rows with the same bounds."""
    start = 0
    for _, run in groupby(bounds, key=id):
        rows = list(run)
        if rows[0] is not None:
            yield (start, start + len(rows)), rows[0]
        start += len(rows)


def _seen(value: Tensor, activation: nn.Module) -> Tensor:
    """Its maps, as an evaluation has them."""
    maps: Tensor = value.clamp_min(0) if isinstance(activation, nn.ReLU) else activation(value)
    return maps


def _limit(maps: Tensor, activation: nn.Module) -> Limit:
    """Their bounds by themselves."""
    return (maps, None) if isinstance(activation, nn.ReLU) else (maps.clamp_min(0), maps.clamp_max(0))


def _wider(one: Limit, other: Limit) -> Limit:
    (high, low), (higher, lower) = one, other
    return torch.maximum(high, higher), None if low is None or lower is None else torch.minimum(low, lower)


def _span(limit: Limit, kind: torch.dtype) -> float:
    """Σ b⁺ − Σ b⁻ of one image."""
    high, low = limit
    return float(_sum(high, kind)) - (0.0 if low is None else float(_sum(low, kind)))


def _beyond(maps: Tensor, limit: Limit, row: int, kind: torch.dtype) -> Tensor:
    """By how much one image's maps, (C, h, w), are outside the limits in that row, summed."""
    high, low = limit
    excess = (maps - high[row]).clamp_min_(0).sum(dtype=kind)
    return excess if low is None else excess + (low[row] - maps).clamp_min_(0).sum(dtype=kind)


def _sum(maps: Tensor, kind: torch.dtype) -> Tensor:
    """Of each row, (B,), in the dtype of the image."""
    total: Tensor = maps.sum(dim=tuple(range(1, maps.ndim)), dtype=kind)
    return total
