"""The architectures by name, and their layers that can be explained."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, fx, nn
from torchvision import models
from torchvision.models.squeezenet import Fire

from shared.catalogue import Layer, Network
from shared.images import Frame
from worker.networks.nodes import Graph, Node, tapped
from worker.networks.tracing import OnMeta, traced
from worker.networks.vgg_mini import VggMini

IMAGENET_FRAME = Frame(224, 224)
NOT_CONVOLUTIONAL = ("vit", "swin", "maxvit")
DENSENETS_OLD = (
    re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)"),
    r"\1\2",
)  # older files have norm.1. instead of norm1.


@dataclass(frozen=True)
class Architecture:
    """A network without weights.

    Args:
        build: creates the module.
        title: for display.
        frame: of its input.
        papers: whether layers have the papers' names (`conv3_2`, `conv3`, `fire5`).
        blocks: whether these are numbered by block (`conv3_2`) instead of consecutively (`conv3`).
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    frame: Frame = IMAGENET_FRAME
    papers: bool = False
    blocks: bool = True

    def module(self) -> nn.Module:
        """The network on the meta device, without memory or initialisation."""
        with OnMeta():
            return self.build().eval()


class Traced:
    """The graph of an architecture, and its layers by name."""

    def __init__(self, architecture: Architecture) -> None:
        module = architecture.module()
        self.architecture = architecture
        within = "features." if architecture.papers else ""
        self.graph = Graph(traced(module), architecture.frame, within=within)
        named = dict(_papers_names(module, blocks=architecture.blocks)) if architecture.papers else {}
        self.layers: Mapping[str, Node] = self.graph.nodes(named)
        self._names = {one.node: name for name, one in self.layers.items()}
        self._parts = {key.partition(".")[0] for key in self.graph.parameters if self.graph.used(key)}

    def reached(self, keys: Iterable[str]) -> list[str]:
        """The layers all of whose parameters, including those below, are among the keys."""
        return [self._names[node] for node in self.graph.reached(keys)]

    def main(self, layers: Iterable[str]) -> list[str]:
        """The main layers among these, which are listed first."""
        return [name for name in layers if self.layers[name].main]

    def matters(self, key: str) -> bool:
        """Whether feature maps may depend on a parameter of this name, so that it is not of the classifier."""
        return key.partition(".")[0] in self._parts and not key.endswith("num_batches_tracked")

    def filled(self, tensors: Mapping[str, Tensor], layers: Iterable[str]) -> fx.GraphModule:
        """The part of the network that these layers need, with these tensors (shared), frozen."""
        network = copy.deepcopy(self.graph.below(self.layers[name].node for name in layers))
        own = network.state_dict()
        absent = {key: torch.zeros(meta.shape) for key, meta in own.items() if key not in tensors}
        network.load_state_dict({**{key: tensors[key] for key in own if key in tensors}, **absent}, assign=True)
        for key, buffer in list(network.named_buffers()):
            if buffer.is_meta:  # not stored in files
                place, _, name = key.rpartition(".")
                network.get_submodule(place).register_buffer(name, tensors[key], persistent=False)
        return network.requires_grad_(False).eval()

    def cut(self, filled: fx.GraphModule, layer: str) -> fx.GraphModule:
        """The network up to a layer: (B, channels, H, W) → Z (B, C, h, w); F = max(Z, 0), or F = Z if maps have a sign.

        Args:
            filled: a result of `filled`; its cuts share its modules.
            layer: the name.
        """
        return self.graph.cut(filled, self.layers[layer].node)

    def each(
        self, filled: fx.GraphModule, layers: Iterable[str], images: Tensor, hook: Callable[[str, Tensor], None]
    ) -> None:
        """One forward pass, in which `hook(layer, F)` is called for each layer."""
        names = {self.layers[name].node: name for name in layers}
        self.graph.each(filled, names, images, lambda node, maps: hook(names[node], maps))

    def below(self, cut: fx.GraphModule) -> tuple[str, ...]:
        """The names of the tapped nodes of a cut, in order."""
        return tuple(self._names.get(name, name) for name in tapped(cut))


def _papers_names(module: nn.Module, *, blocks: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """(node, (the papers' name, block)) of the ReLUs of a sequence, and of fire modules."""
    features = module.features
    assert isinstance(features, nn.Sequential)
    block, in_block, fire = 1, 0, 1
    for index, part in enumerate(features):
        node = f"features.{index}"
        if isinstance(part, nn.ReLU):
            in_block += 1
            yield node, (f"conv{block}_{in_block}", f"block {block}") if blocks else (f"conv{in_block}", "features")
        elif isinstance(part, nn.MaxPool2d):
            block, in_block = (block + 1, 0) if blocks else (block, in_block)
        elif isinstance(part, Fire):
            fire += 1
            yield f"{node}.squeeze_activation", (f"fire{fire}_squeeze", f"fire{fire}")
            yield f"{node}.cat", (f"fire{fire}", f"fire{fire}")


def _torchvision(name: str, title: str, *, blocks: bool = True) -> Architecture:
    build = _builder(name)
    return Architecture(name, title, build, papers=True, blocks=blocks)


def _builder(name: str) -> Callable[[], nn.Module]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return lambda: models.get_model(name, weights=None, **options)


def _others() -> Iterator[Architecture]:
    """The other convolutional classifiers of torchvision."""
    for name in models.list_models(module=models):
        if not name.startswith(NOT_CONVOLUTIONAL) and name not in BUILT_IN:
            (size,) = set(models.get_model_weights(name).DEFAULT.transforms().crop_size)
            yield Architecture(name, name, _builder(name), Frame(size, size))


BUILT_IN = {
    architecture.name: architecture
    for architecture in (
        *(_torchvision(f"vgg{depth}", f"VGG-{depth}") for depth in (11, 13, 16, 19)),
        *(_torchvision(f"vgg{depth}_bn", f"VGG-{depth} with batch normalisation") for depth in (11, 13, 16, 19)),
        _torchvision("alexnet", "AlexNet", blocks=False),
        _torchvision("squeezenet1_0", "SqueezeNet 1.0", blocks=False),
        _torchvision("squeezenet1_1", "SqueezeNet 1.1", blocks=False),
        Architecture(
            *("vgg_mini", "VGG-mini: a small VGG trained on drawn shapes", VggMini),
            frame=Frame(VggMini.INPUT_SIZE, VggMini.INPUT_SIZE),
            papers=True,
        ),
    )
}
ARCHITECTURES = {**BUILT_IN, **{architecture.name: architecture for architecture in _others()}}


def layers_of(name: str, frame: Frame | None = None) -> Traced:
    """The layers of an architecture, traced on first use.

    Args:
        name: of the architecture.
        frame: of the input; the architecture's own by default.

    Raises:
        ValueError: the architecture cannot process such images.
    """
    return _traced(name, frame or ARCHITECTURES[name].frame)


@cache
def _traced(name: str, frame: Frame) -> Traced:
    return Traced(replace(of_channels(name, frame.channels), frame=frame))


def of_channels(name: str, channels: int) -> Architecture:
    """The architecture for images with this number of channels."""
    own = ARCHITECTURES[name]
    frame = own.frame._replace(channels=channels)
    return replace(own, frame=frame, build=lambda: _with_channels(own.build(), own.frame.channels, channels))


def _with_channels(network: nn.Module, usual: int, channels: int) -> nn.Module:
    """Change the input channels of the convolutions that have as many as the usual image has."""
    for part in network.modules() if channels != usual else ():
        if isinstance(part, nn.Conv2d) and part.in_channels == usual:
            part.in_channels = channels
            part.weight = nn.Parameter(part.weight.new_empty(part.out_channels, channels, *part.kernel_size))
    return network


@cache
def describe(name: str, frame: Frame | None = None) -> Network:
    """The catalogue's entry: layers with kernels, map sizes, receptive fields and strides."""
    return catalogued(layers_of(name, frame))


def catalogued(traced: Traced) -> Network:
    """The catalogue's entry of a traced network."""
    architecture, layers = traced.architecture, traced.layers.values()
    height, width, channels = architecture.frame
    return Network(
        name=architecture.name,
        title=architecture.title,
        input_size=height if height == width else (height, width),
        channels=channels,
        layers=[_layer(node) for node in layers if node.main],
        nodes=[_layer(node) for node in layers if not node.main],
    )


def _layer(node: Node) -> Layer:
    return Layer(
        name=node.name,
        node=node.node,
        kernels=node.kernels,
        height=node.height,
        width=node.width,
        receptive_field=node.field.side,
        stride=node.field.stride,
        middle=node.field.middle,
        signed=node.signed,
        without=dict(node.without),
        block=node.block,
    )
