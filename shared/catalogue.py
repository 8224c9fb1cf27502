"""Which networks, layers and kernels exist. Made by `python -m worker.networks.catalogue`; needs no torch to read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, Field, TypeAdapter

from shared.errors import MethodNotApplicable, UnknownKernel, UnknownLayer, UnknownModel, brief
from shared.images import Frame
from shared.schemas import Preprocessing

MOST_TOLD = 5  # kernels that do not exist
MOST_LAYERS_TOLD = 40  # that do

Size = int | tuple[int, int]


class Layer(BaseModel):
    """A layer whose kernels can be explained: a node of the network that has feature maps."""

    name: str = Field(description="as in the papers: `conv3_3`, `fire5`; else torchvision's: `layer3.1.relu_1`")
    node: str = Field(description="torchvision's node: `features.15`")
    kernels: int
    height: int = Field(description="of a feature map, in positions")
    width: int
    receptive_field: int = Field(description="side of the square of input pixels that one position sees")
    stride: int = Field(description="input pixels between neighbouring positions")
    middle: float | None = Field(
        None, description="of what the first position sees: input pixels from the edge, 0.5 is the first pixel's"
    )
    signed: bool = Field(False, description="whether the maps may be negative: they are not after a ReLU")
    block: str = Field("", description="the part of the network that it is in")
    without: dict[str, str] = Field(
        default_factory=dict, description="baselines that have no rule for what is below it, and why"
    )


def frame_of(size: Size, channels: int) -> Frame:
    """Of pixels a side, or height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return Frame(height, width, channels)


class Input(BaseModel):
    """What a network takes."""

    input_size: Size = Field(description="pixels a side; [height, width] where it is not square")
    channels: int = Field(3, description="3, or 1 where it sees grey")

    @property
    def frame(self) -> Frame:
        """The same."""
        return frame_of(self.input_size, self.channels)


class Network(Input):
    """A network and the layers that can be explained."""

    name: str
    title: str
    architecture: str | None = Field(None, description="of a registered network, torchvision's name of what it is")
    layers: list[Layer] = Field(description="those that one looks at first")
    nodes: list[Layer] = Field(default_factory=list, description="the others that have feature maps")

    def layer(self, name: str) -> Layer:
        """The layer by its name (`conv3_3`), its alias (`relu3_3`) or torchvision's node (`features.15`).

        A module of the network (`layer3.1`, `layer3`) stands for the last layer in it.

        Raises:
            UnknownLayer: naming the layers that exist.
        """
        wanted = name.strip()
        known = (*self.layers, *self.nodes)
        alias = re.sub(r"^relu(?=\d)", "conv", wanted)
        named = [layer for one in (wanted, alias) for layer in known if one in (layer.name, layer.node)]
        inside = [layer for layer in self.layers if layer.node.startswith(f"{wanted}.")]
        for layer in (*named, *reversed(inside)):
            return layer
        names = ", ".join(f"{layer.name} ({layer.node})" for layer in self.layers[:MOST_LAYERS_TOLD])
        more = len(known) - min(len(self.layers), MOST_LAYERS_TOLD)
        raise UnknownLayer(
            f"layer {brief(name)} does not exist in {self.name}; layers: {names}"
            + (f", and {more} more in GET /models/{self.name}" if more else "")
        )


class LayerInfo(Layer):
    """A layer, and whether the workers' weights reach it."""

    available: bool | None = Field(description="null while no worker is connected")


class ModelInfo(Input):
    """A network and what can be explained of it now."""

    name: str
    title: str
    available: bool | None = Field(description="null while no worker is connected")
    architecture: str | None = Field(None, description="torchvision's name of what it is")
    reason: str = Field(description="where the weights are from, or why the network cannot be explained")
    preprocessing: Preprocessing | None = Field(None, description="what it is fed; null where no worker has weights")
    weights: str | None = Field(description="the weights file's name")
    weights_sha256: str | None = Field(description="known once a worker has loaded it")
    weights_refused: list[str] = Field(
        default_factory=list,
        description="files in the weights folder that cannot be used, and why: this network's, and those of no network",
    )
    layers: list[LayerInfo] = Field(description="those that one looks at first")
    nodes: list[LayerInfo] = Field(
        default_factory=list, description="the others that have feature maps; in the answer about one network only"
    )


@cache
def networks() -> dict[str, Network]:
    """Every network by name."""
    text = (files("shared") / "catalogue.json").read_text()
    return {network.name: network for network in TypeAdapter(list[Network]).validate_json(text)}


def network(name: str, registered: Mapping[str, Network] | None = None) -> Network:
    """The network of this name.

    Args:
        registered: networks beside those that come with the program.

    Raises:
        UnknownModel: naming the networks that exist.
    """
    known = {**(registered or {}), **networks()}
    try:
        return known[name]
    except KeyError:
        raise UnknownModel(f"model {brief(name)} does not exist; models: {', '.join(known)}") from None


def check_kernels(layer: Layer, kernels: list[int]) -> None:
    """Refuse kernels that the layer does not have.

    Raises:
        UnknownKernel: naming the range.
    """
    if unknown := [kernel for kernel in kernels if kernel >= layer.kernels]:
        told = ", ".join(map(brief, unknown[:MOST_TOLD]))
        more = f" (and {len(unknown) - MOST_TOLD} more)" if len(unknown) > MOST_TOLD else ""
        raise UnknownKernel(
            f"kernel {told}{more} does not exist in {layer.name}; "
            f"its {layer.kernels} kernels are 0 to {layer.kernels - 1}"
        )


def check_methods(layer: Layer, methods: Sequence[str]) -> None:
    """Refuse methods that have no rule for the network.

    Raises:
        MethodNotApplicable: with the reason of each.
    """
    if reasons := dict.fromkeys(layer.without[method] for method in methods if method in layer.without):
        raise MethodNotApplicable(f"{'; '.join(reasons)}, which is below {layer.name}; leave the method out")
