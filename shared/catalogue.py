"""Which networks, layers and kernels exist. Made by `python -m worker.networks.catalogue`; needs no torch to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, Field, TypeAdapter

from shared.errors import UnknownKernel, UnknownLayer, UnknownModel, brief
from shared.schemas import Preprocessing

MOST_TOLD = 5  # kernels that do not exist


class Layer(BaseModel):
    """A layer whose kernels can be explained: the feature maps after its ReLU."""

    name: str = Field(description="as in the papers: `conv3_3`, `fire5`")
    node: str = Field(description="torchvision's node: `features.15`")
    kernels: int
    height: int = Field(description="of a feature map, in positions")
    width: int
    receptive_field: int = Field(description="side of the square of input pixels that one position sees")
    stride: int = Field(description="input pixels between neighbouring positions")


class Network(BaseModel):
    """A network and the layers that can be explained."""

    name: str
    title: str
    architecture: str | None = Field(None, description="of a registered network, torchvision's name of what it is")
    input_size: int = Field(description="side of the square input, in pixels")
    layers: list[Layer]

    def layer(self, name: str) -> Layer:
        """The layer by its name (`conv3_3`), its alias (`relu3_3`) or torchvision's node (`features.15`).

        Raises:
            UnknownLayer: naming the layers that exist.
        """
        wanted = re.sub(r"^relu(?=\d)", "conv", name.strip())
        for layer in self.layers:
            if wanted in (layer.name, layer.node):
                return layer
        names = ", ".join(f"{layer.name} ({layer.node})" for layer in self.layers)
        raise UnknownLayer(f"layer {brief(name)} does not exist in {self.name}; layers: {names}")


class LayerInfo(Layer):
    """A layer, and whether the workers' weights reach it."""

    available: bool | None = Field(description="null while no worker is connected")


class ModelInfo(BaseModel):
    """A network and what can be explained of it now."""

    name: str
    title: str
    input_size: int
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
    layers: list[LayerInfo]


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
