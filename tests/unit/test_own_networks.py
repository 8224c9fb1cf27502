"""Networks of the operator's own code: how they are found, described and explained."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.drawings import scene
from shared.errors import ModelUnavailable
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.networks.loaded import Networks
from worker.networks.own import own_networks

CODE = """
import torch
from torch import nn
from tests.unit.test_own_networks import Branches, Bends

def networks():
    torch.manual_seed(0)
    return {"branches": {"network": Branches(), "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 64,
                         "title": "Two branches"}, "plain": Branches(), "bends": Bends()}

def turned():
    network = networks()["plain"]
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    scaled = Branches()
    scaled.load_state_dict(network.state_dict())
    for conv in (scaled.stem, scaled.beside):
        conv.weight = nn.Parameter(conv.weight.flip(1))
    return {"one": {"network": network, "mean": mean, "std": std, "input_size": 64},
            "other": {"network": scaled, "mean": [255 * one for one in mean[::-1]], "order": "bgr", "range": "0-255",
                      "std": [255 * one for one in std[::-1]], "input_size": 64}}

def fails():
    raise RuntimeError("no weights")

def nothing():
    return [1]

def wrong():
    return {"vgg16": Branches()}

def strange():
    return {"mine": {"network": Branches(), "sizes": 3}}
"""


class Branches(nn.Module):
    """Two convolutions of the pixels; a ReLU that is called twice in place, a ReLU function, one added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.beside = nn.Conv2d(3, 8, 1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.act(self.stem(x)) + functional.relu(self.beside(x), inplace=True)
        x += 1
        logits: Tensor = self.head(self.act(self.last(x)).mean(dim=(2, 3)))
        return logits


class Bends(nn.Module):
    """A network whose control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        maps: Tensor = self.conv(x)
        return maps if maps.sum() > 0 else -maps


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's file, on Python's path."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def device(source: str) -> TorchDevice:
    """Networks with these only."""
    own = own_networks(source)
    return TorchDevice(Networks(Path("/nonexistent"), torch.device("cpu"), None, own, download=False))


def test_a_network_of_own_code_is_explained() -> None:
    """Its layers and preprocessing are published, and its maps are those of the module itself."""
    found = device("mine:networks")
    states = found.states()
    assert states["branches"].available
    assert states["branches"].source == "mine:networks"
    assert not states["branches"].preprocessing.assumed  # type: ignore[union-attr]
    assert states["plain"].preprocessing.assumed  # type: ignore[union-attr]
    reported = {network.name: network for network in found.registered()}
    assert reported["branches"].title == "Two branches"
    assert (reported["branches"].input_size, reported["plain"].input_size) == (64, 224)
    assert reported["branches"].architecture == "tests.unit.test_own_networks.Branches"
    names = [layer.name for layer in (*reported["branches"].layers, *reported["branches"].nodes)]
    assert {"stem", "act", "beside", "last", "act_1"} <= set(names)
    network = found.networks.get("branches")
    module = found.networks.own["branches"].own.network
    pixels = torch.from_numpy(np.array(scene(3, 64).image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        x = network.space.from_bytes(pixels)
        stem, beside = functional.relu(module.stem(x)), functional.relu(module.beside(x))  # type: ignore[operator]
        last = functional.relu(module.last(stem + beside + 1))  # type: ignore[operator]
        for layer, expected in (("act", stem), ("act_1", last)):
            torch.testing.assert_close(network.layer(layer).features(x), expected, rtol=1e-5, atol=1e-6)
    engine = Engine(found)
    picture = np.array(scene(3, 64).image)
    kernel = engine.call(found.ranking, "branches", "act_1", picture)[0]
    answer = dict(engine.ask([Question("branches", "act_1", picture, kernel, 1.0, 1.0, effort="quick")]))[0]
    engine.close()
    assert isinstance(answer, Answer)
    assert answer.losses.total < min(answer.loss_start, answer.loss_blank)
    assert answer.weights.sha256 == found.networks.own["branches"].sha256


def test_range_and_order_reach_every_convolution_that_sees_the_pixels() -> None:
    """A twin for (x·255, BGR) has the same maps."""
    found = device("mine:turned").networks
    pixels = torch.from_numpy(np.array(scene(3, 64).image)).permute(2, 0, 1)[None]
    one, other = (found.get(name).layer("act_1") for name in ("one", "other"))
    maps = [layer.features(layer.space.from_bytes(pixels)) for layer in (one, other)]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_traced_says_so() -> None:
    """In its state, in the catalogue without it, and to a job; the other networks are available."""
    found = device("mine:networks")
    state = found.states()["bends"]
    assert not state.available
    assert "torch.fx cannot trace it" in state.reason
    assert "bends" not in [network.name for network in found.registered()]
    with pytest.raises(ModelUnavailable, match="cannot trace"):
        found.networks.get("bends")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none_there:networks", "none_there"),
        ("mine:nobody", "nobody"),
        ("mine", "mine"),
        ("mine:fails", "RuntimeError: no weights"),
        ("mine:nothing", "returns list; it must return networks by name"),
        ("mine:wrong", "is no architecture's"),
        ("mine:strange", "sizes"),
    ],
)
def test_code_that_gives_no_networks_is_an_error(source: str, words: str) -> None:
    """The error names the setting and the cause."""
    with pytest.raises(ValueError, match=words) as error:
        own_networks(source)
    assert f"KERNELSCOPE_MODELS={source}" in str(error.value)
    assert own_networks("") == {}
