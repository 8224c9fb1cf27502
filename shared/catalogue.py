"""The networks, layers and kernels that exist.

`catalogue.json` is written by `python -m worker.networks.catalogue`; reading it does not need torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from pydantic import Field, TypeAdapter

from shared.errors import MethodNotApplicable, UnknownKernel, UnknownLayer, UnknownModel, brief
from shared.schemas import Input, Layer, LayerInfo, ModelInfo, Size, frame_of

__all__ = [
    "Layer",
    "LayerInfo",
    "ModelInfo",
    "Network",
    "Size",
    "check_kernels",
    "check_methods",
    "frame_of",
    "network",
    "networks",
]

MOST_LISTED = 5  # unknown kernels in an error message
MOST_LAYERS_LISTED = 40  # known layers in an error message


class Network(Input):
    """A network and the layers that can be explained."""

    name: str
    title: str
    architecture: str | None = Field(None, description="torchvision's name of a registered network's architecture")
    layers: list[Layer] = Field(description="the main layers")
    nodes: list[Layer] = Field(default_factory=list, description="all other nodes that have feature maps")

    def layer(self, name: str) -> Layer:
        """The layer with this name (`conv3_3`), alias (`relu3_3`) or node of torchvision (`features.15`).

        The name of a module (`layer3.1`, `layer3`) means the last layer in it.

        Raises:
            UnknownLayer: its message lists the layers that exist.
        """
        wanted = name.strip()
        known = (*self.layers, *self.nodes)
        alias = re.sub(r"^relu(?=\d)", "conv", wanted)
        named = [layer for one in (wanted, alias) for layer in known if one in (layer.name, layer.node)]
        inside = [layer for layer in self.layers if layer.node.startswith(f"{wanted}.")]
        for layer in (*named, *reversed(inside)):
            return layer
        names = ", ".join(f"{layer.name} ({layer.node})" for layer in self.layers[:MOST_LAYERS_LISTED])
        more = len(known) - min(len(self.layers), MOST_LAYERS_LISTED)
        raise UnknownLayer(
            f"layer {brief(name)} does not exist in {self.name}; layers: {names}"
            + (f", and {more} more in GET /models/{self.name}" if more else "")
        )


@cache
def networks() -> dict[str, Network]:
    """The networks that come with the program, by name."""
    text = (files("shared") / "catalogue.json").read_text()
    return {network.name: network for network in TypeAdapter(list[Network]).validate_json(text)}


def network(name: str, registered: Mapping[str, Network] | None = None) -> Network:
    """The network with this name.

    Args:
        registered: networks in addition to those that come with the program.

    Raises:
        UnknownModel: its message lists the networks that exist.
    """
    known = {**(registered or {}), **networks()}
    try:
        return known[name]
    except KeyError:
        raise UnknownModel(f"model {brief(name)} does not exist; models: {', '.join(known)}") from None


def check_kernels(layer: Layer, kernels: list[int]) -> None:
    """Reject kernels that the layer does not have.

    Raises:
        UnknownKernel: its message has the valid range.
    """
    if unknown := [kernel for kernel in kernels if kernel >= layer.kernels]:
        listed = ", ".join(map(brief, unknown[:MOST_LISTED]))
        more = f" (and {len(unknown) - MOST_LISTED} more)" if len(unknown) > MOST_LISTED else ""
        raise UnknownKernel(
            f"kernel {listed}{more} does not exist in {layer.name}; "
            f"its {layer.kernels} kernels are 0 to {layer.kernels - 1}"
        )


def check_methods(layer: Layer, methods: Sequence[str]) -> None:
    """Reject methods that have no rule for the network.

    Raises:
        MethodNotApplicable: its message has the reason for each.
    """
    if reasons := dict.fromkeys(layer.without[method] for method in methods if method in layer.without):
        raise MethodNotApplicable(f"{'; '.join(reasons)}, which is below {layer.name}; leave the method out")
