"""A loaded network, and one of its layers: what methods, batches and caches know of it, and are keyed by."""

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

Each = Callable[[Collection[str], Tensor, Callable[[str, Tensor], None]], None]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer, with the network below it: frozen, in eval mode, on its device.

    There is one of it for a name and a network, so it is a key by itself. What it makes when first asked is the
    engine's thread's.

    Args:
        network: the network's name.
        name: the layer's.
        cut: the network up to the layer but for its ReLU, images (B, 3, H, W) → Z (B, C, h, w), of grey (B, 1, H, W);
            layers share modules.
        space: in which the images' pixels are.
        frame: of the images.
        weights: which the network has.
        below: the names of the layers below that are watched, in order.
        signed: whether the maps may be negative, F = Z; else F = max(Z, 0).
        without: methods that have no rule for the network below, and why.
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
        """On which it is."""
        return self.space.mean.device

    @cached_property
    def tapped(self) -> TappedNetwork:
        """The same network, with activations that can be watched."""
        return TappedNetwork(self.cut)

    def features(self, images: Tensor) -> Tensor:
        """The feature maps F: (B, 3, H, W), of grey (B, 1, H, W) → (B, C, h, w)."""
        maps: Tensor = self.cut(images)
        return self.maps(maps)

    def maps(self, before: Tensor) -> Tensor:
        """F of Z."""
        return before if self.signed else before.clamp_min(0)

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} of {self.network}"


class Layers(Mapping[str, Layer]):
    """Layers by name, each made when it is first asked for."""

    def __init__(self, names: list[str], make: Callable[[str], Layer]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._made: dict[str, Layer] = {}

    def __getitem__(self, name: str) -> Layer:
        """The layer."""
        if name not in self._names:
            raise KeyError(name)
        return self._made.get(name) or self._made.setdefault(name, self._make(name))

    def __contains__(self, name: object) -> bool:
        """Nothing is made for it."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Their names, in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network on a device: frozen, in eval mode, as far as its weights reach."""

    name: str
    space: PixelSpace
    frame: Frame
    weights: WeightsUsed
    reason: str
    layers: Mapping[str, Layer]  # that the weights cover, those that one looks at first
    nodes: Mapping[str, Layer] = field(default_factory=dict)  # and the others
    together: Each | None = None  # several layers in one pass
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
        """Of what is no architecture: from its cuts, each up to a layer but for its ReLU, which share their modules."""
        named = {str(len(cut)): layer for layer, cut in cuts.items()}

        def below(cut: nn.Sequential) -> tuple[str, ...]:
            relus = (path for path, module in cut.named_modules() if isinstance(module, nn.ReLU))
            return tuple(named.get(path, path) for path in relus)

        layers = {layer: Layer(name, layer, cut, space, frame, weights, below(cut)) for layer, cut in cuts.items()}
        return cls(name, space, frame, weights, reason, layers)

    def layer(self, name: str) -> Layer:
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
    def each(self, layers: Collection[str], images: Tensor, see: Callable[[str, Tensor], None]) -> None:
        """`see(layer, F)` of each layer, F of shape (B, C, h, w); in one pass where the network can do that.

        Args:
            images: (B, 3, H, W), of grey (B, 1, H, W), normalised.
        """
        if self.together:
            self.together(layers, images, see)
        else:
            for name in layers:
                see(name, self.layer(name).features(images))
