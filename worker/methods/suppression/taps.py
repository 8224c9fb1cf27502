"""L_e, the invention: activation below the chosen layer that X̂ causes and X does not.

For the D activation layers below the chosen one, with maps ĥ_d of X̂, maps h_d of X and a bound b_d for each neuron:

    L_e = (1/D) · Σ_d  Σ max(ĥ_d − b_d, 0) / Σ h_d

0 means that X̂ exceeds no bound. The reported invention has b_d = h_d(X). The loss of `evidence` has
b_d = max(h_d(X), h_d(0)) with the blank picture 0, so that a neuron which responds to the mean colour itself may do so
where X̂ has been cleared. A layer with Σ h_d = 0 contributes 0, and L_e = 0 where there is no layer below (D = 0).

Where maps have a sign (another activation than ReLU, or an addition without one) there are two bounds, b⁺ = max(h_d, 0)
and b⁻ = min(h_d, 0); in the loss of `evidence`, the wider ones of X and the blank picture:

    Σ [ max(ĥ_d − b⁺_d, 0) + max(b⁻_d − ĥ_d, 0) ] / Σ |h_d|

The subgradient of γ·L_e with respect to ĥ_d is γ / (D·Σ |h_d|) where ĥ_d > b⁺_d, and its negative where ĥ_d < b⁻_d
(hinge.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor, nn

from worker.methods.suppression.hinge import Hinged, HingedReLU, LayerBounds, Span

Hook = Callable[[Tensor, nn.Module], Tensor]  # (the activation's input, the activation) → its maps


class Sum(nn.Identity):
    """Marks an addition that no activation follows, so that it is tapped too."""


class Last(nn.Module):
    """The chosen layer's own activation, which is not tapped: taps are below it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._activation = (activation,)  # in a tuple, so that it is not registered as a child and tapped

    def forward(self, value: Tensor) -> Tensor:
        """φ(Z)."""
        maps: Tensor = self._activation[0](value)
        return maps


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish),
    *(nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus),
)


@dataclass(frozen=True, eq=False)
class ActivationBounds:
    """The bounds b_d of one image, shared by all problems on that image."""

    layers: tuple[LayerBounds, ...]  # in the order of the forward pass
    sums: Tensor  # Σ b⁺_d − Σ b⁻_d, (D,)
    scale: Tensor  # 1 / (D·Σ |h_d|), (D,); 0 where X leaves a layer silent


class TappedNetwork(nn.Module):
    """A network with a tap on each activation. It shares the parameters of `network`, which is not changed.

    Without an active hook it computes the same as `network`. It may be used by one thread only.

    Args:
        network: images (B, 3, H, W) → Z (B, C, h, w); its activations are modules.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
        self.network = deepcopy(network, shared)  # new modules with the same tensors
        self._hook: Hook | None = None
        self._blank: dict[torch.dtype, list[LayerBounds]] = {}  # of h_d(0), by the precision of the evaluations
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, (*ACTIVATIONS, Sum)):
                    setattr(module, name, _Tap(self, child))

    def forward(self, images: Tensor) -> Tensor:
        """Z of the images."""
        before_relu: Tensor = self.network(images)
        return before_relu

    @torch.no_grad()
    def bounds(self, image: Tensor, precision: torch.dtype) -> ActivationBounds:
        """b_d = max(h_d(X), h_d(0)) of one image X, (1, 3, H, W), computed in the precision of the evaluations."""
        kind = image.dtype
        with torch.autocast(image.device.type, precision, enabled=precision is torch.bfloat16):
            own, sums = self._own_bounds(image)
            if precision not in self._blank:
                self._blank[precision], _ = self._own_bounds(torch.zeros_like(image))
            layers = tuple(_wider(one, other) for one, other in zip(own, self._blank[precision], strict=True))
        known = image.new_tensor(sums)
        scale = torch.where(known > 0, 1 / (len(layers) * known), 0)
        return ActivationBounds(layers, image.new_tensor([_width(layer, kind) for layer in layers]), scale)

    def forward_with_invention(
        self, images: Tensor, bounds: Sequence[ActivationBounds | None], weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Z of the images, and L_e of each, (B,).

        The backward pass from Z adds the gradient of weight·L_e.

        Args:
            images: (B, 3, H, W).
            bounds: of each image; without, its L_e is 0.
            weight: γ of each image in the unit of the gradient with respect to Z, (B,).
        """
        spans = list(_spans(bounds))
        excess = torch.zeros_like(weight)
        depth = iter(range(max((len(found.layers) for _, found in spans), default=0)))

        def hook(value: Tensor, activation: nn.Module) -> Tensor:
            layer = next(depth)
            layer_bounds = [(span, found.layers[layer]) for span, found in spans]
            scaled = torch.zeros_like(weight)
            for (start, end), found in spans:
                scaled[start:end] = weight[start:end] * found.scale[layer]
            relu = isinstance(activation, nn.ReLU)
            maps: Tensor = (
                HingedReLU.apply(value, layer_bounds, scaled)
                if relu
                else Hinged.apply(activation(value), layer_bounds, scaled)
            )
            for (start, end), found in spans:
                high, low = found.layers[layer]
                own = maps.detach()[start:end]
                over = _sum(torch.maximum(own, high), weight.dtype) - found.sums[layer]  # Σ max(ĥ, b) − Σ b
                if low is not None:
                    over = over - _sum(torch.minimum(own, low), weight.dtype)
                excess[start:end] += over.clamp_min(0) * found.scale[layer]
            return maps

        with self._hooked(hook):
            return self.network(images), excess

    @torch.no_grad()
    def invention(self, originals: Tensor, images: Tensor, of: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The invention of each image in each layer below, Σ max(ĥ_d − b_d, 0) / Σ h_d, after one forward pass.

        Args:
            originals: (R, 3, H, W), each an X.
            images: (B, 3, H, W).
            of: the number of each image's X.

        Returns:
            Z of the blank picture and then of the images, (1 + B, C, h, w); the invention with b_d = h_d(X), (B, D),
            whose mean over the layers is the reported L_e; and with the bounds of `evidence`, max(h_d(X), h_d(0)).
        """
        count = 1 + len(originals)
        by_layer: list[Tensor] = []

        def hook(value: Tensor, activation: nn.Module) -> Tensor:
            maps = _maps(value, activation)
            blank, known, theirs = maps[:1], maps[1:count], maps[count:]
            whole = _sum(known.abs(), images.dtype)[list(of)]
            own, empty = _bounds(known, activation), _bounds(blank, activation)
            found = []
            for bounds in (own, _wider(own, empty)):
                excess = torch.stack(
                    [_excess(one, bounds, number, images.dtype) for one, number in zip(theirs, of, strict=True)]
                )
                found.append(torch.where(whole > 0, excess / whole, 0))
            by_layer.append(torch.stack(found))
            return maps

        with self._hooked(hook):
            found = self.network(torch.cat([torch.zeros_like(originals[:1]), originals, images]))
        before_relu = torch.cat([found[:1], found[count:]])
        if not by_layer:
            nothing = images.new_zeros(len(images), 0)
            return before_relu, nothing, nothing
        own, beyond_blank = torch.stack(by_layer, dim=2)
        return before_relu, own, beyond_blank

    def _own_bounds(self, image: Tensor) -> tuple[list[LayerBounds], list[float]]:
        """b_d = h_d of one image, and Σ |h_d|."""
        bounds: list[LayerBounds] = []
        sums: list[float] = []

        def hook(value: Tensor, activation: nn.Module) -> Tensor:
            maps = _maps(value, activation)
            bounds.append(_bounds(maps, activation))
            sums.append(float(_sum(maps.abs(), image.dtype)))
            return maps

        with self._hooked(hook):
            self.network(image)
        return bounds, sums

    @contextmanager
    def _hooked(self, hook: Hook) -> Iterator[None]:
        """Within this context the hook is called in place of each activation."""
        self._hook = hook
        try:
            yield
        finally:
            self._hook = None

    def activated(self, value: Tensor, activation: nn.Module) -> Tensor:
        """The output of a tap."""
        maps: Tensor = activation(value) if self._hook is None else self._hook(value, activation)
        return maps


class _Tap(nn.Module):
    """Replaces an activation of a tapped network."""

    def __init__(self, owner: TappedNetwork, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self._activated = owner.activated  # a bound method, so that the owner does not become a child

    def forward(self, value: Tensor) -> Tensor:
        return self._activated(value, self.activation)


def _spans(bounds: Sequence[ActivationBounds | None]) -> Iterator[tuple[Span, ActivationBounds]]:
    """Runs of adjacent rows with the same bounds."""
    start = 0
    for _, run in groupby(bounds, key=id):
        rows = list(run)
        if rows[0] is not None:
            yield (start, start + len(rows)), rows[0]
        start += len(rows)


def _maps(value: Tensor, activation: nn.Module) -> Tensor:
    """The activation's maps, computed as in an evaluation."""
    maps: Tensor = value.clamp_min(0) if isinstance(activation, nn.ReLU) else activation(value)
    return maps


def _bounds(maps: Tensor, activation: nn.Module) -> LayerBounds:
    """b⁺ and b⁻ of these maps alone."""
    return (maps, None) if isinstance(activation, nn.ReLU) else (maps.clamp_min(0), maps.clamp_max(0))


def _wider(one: LayerBounds, other: LayerBounds) -> LayerBounds:
    (high, low), (higher, lower) = one, other
    return torch.maximum(high, higher), None if low is None or lower is None else torch.minimum(low, lower)


def _width(bounds: LayerBounds, kind: torch.dtype) -> float:
    """Σ b⁺ − Σ b⁻ of one image."""
    high, low = bounds
    return float(_sum(high, kind)) - (0.0 if low is None else float(_sum(low, kind)))


def _excess(maps: Tensor, bounds: LayerBounds, row: int, kind: torch.dtype) -> Tensor:
    """Σ max(ĥ − b⁺, 0) + Σ max(b⁻ − ĥ, 0) of one image's maps, (C, h, w), against the bounds in this row."""
    high, low = bounds
    excess = (maps - high[row]).clamp_min_(0).sum(dtype=kind)
    return excess if low is None else excess + (low[row] - maps).clamp_min_(0).sum(dtype=kind)


def _sum(maps: Tensor, kind: torch.dtype) -> Tensor:
    """The sum of each row, (B,), in this dtype."""
    total: Tensor = maps.sum(dim=tuple(range(1, maps.ndim)), dtype=kind)
    return total
