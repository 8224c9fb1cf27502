"""Modules of all kinds as networks: their nodes compute what the module does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.methods.baselines import private
from worker.networks.loaded import Networks
from worker.networks.own import OwnDefinition, OwnNetwork


class Small(nn.Module):
    """Parts of the networks below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.prelu = nn.PReLU()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1), persistent=False)


class InPlace(Small):
    """A network with an in-place operation as a statement."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        x = self.first(x)
        x.mul_(3.0)
        self.relu(x)
        y = self.second(x)
        functional.relu(y, inplace=True)
        maps: Tensor = y * self.scale
        return maps


class Twice(Small):
    """A convolution with two batch normalisations after it, a PReLU called twice, and additions of all kinds."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        x = self.first(x)
        x = self.prelu(self.one(self.second(x)))
        x = self.prelu(self.other(self.second(x)))
        maps: Tensor = torch.add(x, x, alpha=3) + 1.5
        return maps


class Standardised(Small):
    """A network with computed weights, and a number computed from the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        x = functional.pad(x, (0, x.shape[-1] + 1 - x.shape[-1], 0, 1))
        weight = self.first.weight
        weight = (weight - weight.mean()) / (weight.std() + 1e-5)
        maps: Tensor = functional.silu(functional.conv2d(x, weight))
        return maps


def made(module: nn.Module) -> tuple[Networks, OwnNetwork]:
    """A network named `mine`."""
    own = OwnNetwork("mine", OwnDefinition(network=module.eval(), input_size=64), "tests")
    return Networks(Path("/nonexistent"), torch.device("cpu"), None, {"mine": own}, download=False), own


@pytest.mark.parametrize("kind", [InPlace, Twice, Standardised])
def test_the_last_node_is_what_the_module_gives(kind: type[Small]) -> None:
    """Also with in-place operations, shared modules and computed weights."""
    networks, own = made(kind())
    loaded = networks.get("mine")
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    last = list(own.traced.layers)[-1]
    layer = loaded.layer(last)
    with torch.no_grad():
        expected = own.own.network(image.clone())
        torch.testing.assert_close(layer.features(image), expected, rtol=1e-5, atol=1e-5)
    assert set(own.traced.layers) == {*loaded.layers, *loaded.nodes}
    assert last not in layer.below
    layer.tapped.invention(image[:1], image, [0, 0])
    for method in {"guided_backprop", "deconvnet", "lrp"} - set(layer.without):
        maps = private(layer.cut, method, signed=layer.signed)(image)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


def test_the_identity_is_of_what_a_network_does() -> None:
    """The same weights with another computation are another network."""

    class Other(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 5

    assert made(InPlace())[1].sha256 == made(InPlace())[1].sha256
    assert made(InPlace())[1].sha256 != made(Other())[1].sha256


def test_a_layer_s_own_name_comes_before_the_papers() -> None:
    """`relu1` is a layer here, and not an alias of conv1."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.relu1, self.conv2 = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            maps: Tensor = self.conv2(self.relu1(self.conv1(x)))
            return maps

    network = made(Named())[1].network
    assert network.layer("relu1").name == "relu1"
    assert network.layer("conv1").name == "conv1"
