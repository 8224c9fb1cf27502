"""A loaded network, and one of its layers, as used by methods, batches and caches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from shared.errors import LayerNotCovered
from shared.images import Frame
from shared.schemas import WeightsUsed
from worker.methods.suppression import PixelSpace, TappedNetwork

Hook = Callable[[str, Tensor], None]  # (layer, its maps F)
Each = Callable[[Collection[str], Tensor, Hook], None]


@dataclass(frozen=True, eq=False)
class LoadedLayer:
    """A layer with the network below it: frozen, in eval mode, on its device.

    There is one object per layer of a network, which is hashed by identity. Its cached properties may be used by the
    engine's thread only.

    Args:
        network: the network's name.
        name: the layer's name.
        cut: the network up to the layer without its ReLU: images (B, 3, H, W), or (B, 1, H, W) in grey →
            Z (B, C, h, w). Layers share modules.
        space: of the images' pixels.
        frame: of the images.
        weights: of the network.
        below: the names of the tapped layers below, in order.
        signed: whether the maps may be negative, F = Z; else F = max(Z, 0).
        without: methods that have no rule for a node below, with the reason.
    """

    network: str
    name: str
    cut: nn.Module
    space: PixelSpace
    frame: Frame
    weights: WeightsUsed
    below: tuple[str, ...] = ()
    signed: bool = False
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.space.mean.device

    @cached_property
    def tapped(self) -> TappedNetwork:
        """The same network with taps on its activations."""
        return TappedNetwork(self.cut)

    def features(self, images: Tensor) -> Tensor:
        """The feature maps F: (B, 3, H, W), or (B, 1, H, W) in grey → (B, C, h, w)."""
        maps: Tensor = self.cut(images)
        return self.maps(maps)

    def maps(self, before: Tensor) -> Tensor:
        """F from Z, (B, C, h, w)."""
        return before if self.signed else before.clamp_min(0)

    def __str__(self) -> str:
        """For display."""
        return f"{self.name} of {self.network}"


class Layers(Mapping[str, LoadedLayer]):
    """Layers by name, created on first use."""

    def __init__(self, names: list[str], make: Callable[[str], LoadedLayer]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._made: dict[str, LoadedLayer] = {}

    def __getitem__(self, name: str) -> LoadedLayer:
        """The layer."""
        if name not in self._names:
            raise KeyError(name)
        return self._made.get(name) or self._made.setdefault(name, self._make(name))

    def __contains__(self, name: object) -> bool:
        """Does not create the layer."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """The names, in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._names)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network on a device: frozen, in eval mode, up to the last layer that its weights cover."""

    name: str
    space: PixelSpace
    frame: Frame
    weights: WeightsUsed
    reason: str
    layers: Mapping[str, LoadedLayer]  # the main layers that the weights cover
    nodes: Mapping[str, LoadedLayer] = field(default_factory=dict)  # the others
    together: Each | None = None  # several layers in one forward pass
    signed: Collection[str] = ()  # layers whose maps may be negative

    @classmethod
    def of(
        cls,
        name: str,
        cuts: dict[str, nn.Sequential],
        space: PixelSpace,
        frame: Frame,
        weights: WeightsUsed,
        reason: str,
    ) -> LoadedNetwork:
        """A network without an architecture, from its cuts up to each layer without its ReLU, which share modules."""
        named = {str(len(cut)): layer for layer, cut in cuts.items()}

        def below(cut: nn.Sequential) -> tuple[str, ...]:
            relus = (path for path, module in cut.named_modules() if isinstance(module, nn.ReLU))
            return tuple(named.get(path, path) for path in relus)

        layers = {
            layer: LoadedLayer(name, layer, cut, space, frame, weights, below(cut)) for layer, cut in cuts.items()
        }
        return cls(name, space, frame, weights, reason, layers)

    def layer(self, name: str) -> LoadedLayer:
        """One of its layers.

        Raises:
            LayerNotCovered: the weights end below the layer.
        """
        for known in (self.layers, self.nodes):
            if name in known:
                return known[name]
        raise LayerNotCovered(
            f"the weights of {self.name} ({self.weights.source}) do not cover {name}; "
            f"they cover {', '.join(self.layers)}"
        )

    @torch.no_grad()
    def each(self, layers: Collection[str], images: Tensor, hook: Hook) -> None:
        """Call `hook(layer, F)` for each layer, with F of shape (B, C, h, w); in one forward pass if possible.

        Args:
            layers: by name.
            images: (B, 3, H, W), or (B, 1, H, W) in grey, normalised.
            hook: called in the order of the forward pass, or of `layers`.
        """
        if self.together:
            self.together(layers, images, hook)
        else:
            for name in layers:
                hook(name, self.layer(name).features(images))
