"""The layers that a weights file covers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import LayerNotCovered
from tests.unit.weights_files import networks, parameters, put, refuses, whole
from worker.networks.weights import file_error, find


def test_a_partial_file_serves_exactly_the_layers_that_it_covers(tmp_path: Path) -> None:
    """With blocks 1 and 2 of VGG-16: four layers, and a clear error above; the state says the same before loading."""
    state = {key: tensor for key, tensor in whole("vgg16").items() if int(key.split(".")[1]) <= 7}
    save_file(state, tmp_path / "vgg16-blocks1-2.safetensors")
    source = networks(tmp_path)
    covered = ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
    assert source.states()["vgg16"].layers == covered
    network = source.get("vgg16")
    assert list(network.layers) == covered
    assert network.layer("conv2_2").features(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 16, 16)
    with pytest.raises(
        LayerNotCovered, match=r"vgg16-blocks1-2\.safetensors.*do not cover conv3_1.*conv1_1, .*conv2_2"
    ):
        network.layer("conv3_1").features(torch.zeros(1, 3, 32, 32))


def test_a_gap_ends_the_coverage(tmp_path: Path) -> None:
    """A layer whose lower neighbour is missing cannot be computed."""
    state = {key: tensor for key, tensor in whole("vgg11").items() if key != "features.3.bias"}
    save_file(state, tmp_path / "vgg11.safetensors")
    assert list(networks(tmp_path).get("vgg11").layers) == ["conv1_1"]


def test_a_fire_module_may_be_covered_up_to_its_squeeze(tmp_path: Path) -> None:
    """Missing parameters that are above the layer do not matter."""
    state = {key: t for key, t in whole("squeezenet1_1").items() if not key.startswith("features.3.expand")}
    save_file(state, tmp_path / "squeezenet1_1.safetensors")
    network = networks(tmp_path).get("squeezenet1_1")
    assert list(network.layers) == ["conv1", "fire2_squeeze"]
    assert network.layer("fire2_squeeze").features(torch.zeros(1, 3, 64, 64)).shape[1] == 16


def test_lower_layers_that_several_networks_have(folder: Path) -> None:
    """It can be used for each of them, and is refused for another network with all their names."""
    for name in ("vgg13", "vgg16", "vgg19"):
        put(folder / f"{name}.pth", "vgg16", until=7)
        assert find(name, folder, download=False).layers == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
        assert list(networks(folder).get(name).layers)[-1] == "conv2_2"
        assert file_error(folder / f"{name}.pth") == ""
    put(folder / "vgg11.pth", "vgg16", until=7)
    refuses(folder, "vgg11", "vgg11.pth", "this file is vgg13's or vgg16's or vgg19's, not vgg11's")


def test_a_head_of_another_size_is_no_matter(folder: Path) -> None:
    """SqueezeNet's classifier is a convolution, but no layer."""
    state = parameters("squeezenet1_1") | {"classifier.1.weight": torch.zeros(10, 512, 1, 1)}
    torch.save(state, folder / "squeezenet1_1.pth")
    found = networks(folder).states()["squeezenet1_1"]
    assert (found.available, found.whole) == (True, True)
