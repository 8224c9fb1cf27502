"""The networks by name: how to build them, and the layers that can be explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.squeezenet import Fire

from shared.catalogue import Layer, Network
from worker.networks.vgg_mini import VggMini

IMAGENET_SIZE = 224


@dataclass(frozen=True)
class Architecture:
    """A network without weights.

    `build` makes the module; its convolutional part must be the `nn.Sequential` named `features`.
    `title` is for people. `blocks`: layers are numbered by block (`conv3_2`), else one after another (`conv3`).
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    input_size: int = IMAGENET_SIZE
    blocks: bool = True

    def features(self) -> nn.Sequential:
        """The convolutional part, on the meta device: no memory, no initialisation; its ReLUs never in place."""
        with torch.device("meta"):
            features = self.build().features
        assert isinstance(features, nn.Sequential)
        for module in features.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return features.eval().requires_grad_(False)


class Expand(nn.Module):
    """The second half of a fire module before its ReLU."""

    def __init__(self, one: nn.Conv2d, three: nn.Conv2d) -> None:
        super().__init__()
        self.one = one
        self.three = three

    def forward(self, maps: Tensor) -> Tensor:
        """(B, S, h, w) → (B, C, h, w), the kernels of the 1×1 path first."""
        return torch.cat([self.one(maps), self.three(maps)], dim=1)


@dataclass(frozen=True)
class Cut:
    """Where a layer is in `features`: everything before index `end`, then `inside` that module where it has parts."""

    name: str
    node: str
    end: int
    inside: Literal["", "squeeze", "expand"] = ""

    def preactivation(self, features: nn.Sequential) -> nn.Sequential:
        """The network up to the layer but for its last ReLU, sharing the modules of `features`.

        (B, 3, H, W) → Z (B, C, h, w); the layer's feature maps are F = max(Z, 0).
        """
        inner: list[nn.Module] = []
        if self.inside:
            fire = features[self.end]
            assert isinstance(fire, Fire)
            inner = [fire.squeeze]
            if self.inside == "expand":
                inner = [fire.squeeze, fire.squeeze_activation, Expand(fire.expand1x1, fire.expand3x3)]
        return nn.Sequential(*features[: self.end], *inner).eval()

    @property
    def depth(self) -> int:
        """How many modules of `features` the layer reaches into."""
        return self.end + bool(self.inside)

    def keys(self, features: nn.Sequential) -> set[str]:
        """Names of the parameters that the layer needs, its own and those of everything below."""
        own = {"": [], "squeeze": [f"{self.end}.squeeze."], "expand": [f"{self.end}."]}[self.inside]
        prefixes = [f"{index}." for index in range(self.end)] + own
        return {
            key
            for key in features.state_dict()
            if key.startswith(tuple(prefixes)) and not key.endswith("num_batches_tracked")
        }


def _torchvision(name: str, title: str, *, blocks: bool = True) -> Architecture:
    return Architecture(name, title, lambda: models.get_model(name, weights=None), blocks=blocks)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        *(_torchvision(f"vgg{depth}", f"VGG-{depth}") for depth in (11, 13, 16, 19)),
        *(_torchvision(f"vgg{depth}_bn", f"VGG-{depth} with batch normalisation") for depth in (11, 13, 16, 19)),
        _torchvision("alexnet", "AlexNet", blocks=False),
        _torchvision("squeezenet1_0", "SqueezeNet 1.0", blocks=False),
        _torchvision("squeezenet1_1", "SqueezeNet 1.1", blocks=False),
        Architecture(
            "vgg_mini", "VGG-mini: a small VGG trained on drawn shapes", VggMini, input_size=VggMini.INPUT_SIZE
        ),
    )
}


@cache
def cuts(name: str) -> dict[str, Cut]:
    """The layers of a network by name, in order."""
    architecture = ARCHITECTURES[name]
    return {cut.name: cut for cut in _cuts(architecture.features(), blocks=architecture.blocks)}


def _cuts(features: nn.Sequential, *, blocks: bool) -> Iterator[Cut]:
    block, in_block, fire = 1, 0, 1
    for index, module in enumerate(features):
        if isinstance(module, nn.ReLU):
            in_block += 1
            yield Cut(f"conv{block}_{in_block}" if blocks else f"conv{in_block}", f"features.{index}", index)
        elif isinstance(module, nn.MaxPool2d):
            block, in_block = (block + 1, 0) if blocks else (block, in_block)
        elif isinstance(module, Fire):
            fire += 1
            yield Cut(f"fire{fire}_squeeze", f"features.{index}.squeeze_activation", index, "squeeze")
            yield Cut(f"fire{fire}", f"features.{index}", index, "expand")


@cache
def describe(name: str) -> Network:
    """The catalogue's entry: layers with kernels, map sizes, receptive fields and strides."""
    architecture = ARCHITECTURES[name]
    features = architecture.features()
    image = torch.empty(1, 3, architecture.input_size, architecture.input_size, device="meta")
    return Network(
        name=name,
        title=architecture.title,
        input_size=architecture.input_size,
        layers=[_layer(cut, cut.preactivation(features), image) for cut in cuts(name).values()],
    )


def _layer(cut: Cut, modules: nn.Sequential, image: Tensor) -> Layer:
    _, kernels, height, width = modules(image).shape  # (1, C, h, w)
    field, stride = receptive_field(modules)
    return Layer(
        name=cut.name,
        node=cut.node,
        kernels=kernels,
        height=height,
        width=width,
        receptive_field=field,
        stride=stride,
    )


def receptive_field(modules: nn.Sequential) -> tuple[int, int]:
    """Side of the square of input pixels that one position sees, and the pixels between neighbouring positions."""
    field, stride = 1, 1
    for widest in map(_widest, modules):
        if isinstance(widest, nn.Conv2d | nn.MaxPool2d):
            side, step = _first(widest.kernel_size), _first(widest.stride)
            field, stride = field + (side - 1) * stride, stride * step
    return field, stride


def _widest(module: nn.Module) -> nn.Module:
    """Of the parallel paths of a fire module the one that sees most; its squeeze sees one position."""
    widest = {Fire: "expand3x3", Expand: "three"}.get(type(module), "")
    return module.get_submodule(widest)  # "" is the module itself


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
