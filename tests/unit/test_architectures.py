"""Torchvision's networks, cut at each of their layers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared import catalogue
from tests.conftest import FULL
from tests.unit.graphs import plain_run
from tests.unit.weights_files import networks, whole
from worker.networks.architectures import ARCHITECTURES, BUILT_IN, layers_of
from worker.networks.catalogue import catalogue as generated


def test_catalogue_is_what_torchvision_has() -> None:
    """The file that the API reads is what the generator writes."""
    path = Path(catalogue.__file__).with_name("catalogue.json")
    assert path.read_text() == generated()


# Of each family; the rest of torchvision's are the same with other numbers.
FAMILIES = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "inception_v3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s"),
    *("regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5", "convnext_tiny"),
)
FEW = ("vgg16", "vgg11_bn", "alexnet", "squeezenet1_1", "vgg_mini", "resnet18", "googlenet", "mobilenet_v2")
MOST = 1000 if FULL else 40  # nodes: each is a run of all below it
ALL = [pytest.param(name, MOST, marks=pytest.mark.slow) for name in (*BUILT_IN, *FAMILIES)]


@pytest.mark.parametrize(("name", "most"), [*((name, 20) for name in FEW), *ALL])
def test_every_node_is_torchvision_s(name: str, most: int) -> None:
    """Cuts compute the same as torchvision's own module at the node of the same name, with the described shape."""
    state, own = whole(name), layers_of(name)
    model = ARCHITECTURES[name].module()
    state = OrderedDict(state)
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]  # MNASNet asks for it
    model.to_empty(device="cpu").load_state_dict(state, strict=False)
    size = own.architecture.frame.width
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = plain_run(model, image)
    filled = own.filled(state, own.layers)
    names = list(own.layers)
    for layer in names[:: -(-len(names) // most)]:
        node = own.layers[layer]
        with torch.no_grad():
            maps = own.cut(filled, layer)(image)
        maps = maps if node.signed else maps.clamp_min(0)
        plain = expected[node.node]
        if plain.shape != maps.shape:
            plain = plain.permute(0, 3, 1, 2)  # channels last, in ConvNeXt's blocks
        assert maps.shape == (1, node.kernels, node.height, node.width)
        assert float((maps - plain).norm()) <= 1e-5 * float(plain.norm()), layer
        assert node.signed or bool((maps >= 0).all()), layer


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.slow
def test_every_network_of_torchvision_has_layers(name: str) -> None:
    """Each can be traced, one convolution sees its pixels, and its last main layer is deep."""
    own = layers_of(name)
    main = [node for node in own.layers.values() if node.main]
    assert own.graph.first == own.graph.parameters[:1]
    assert len(main) >= 5
    assert main[-1].field.side > 60


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg16", "conv2_2"),
        ("alexnet", "conv2"),
        ("alexnet", "conv5"),
        ("squeezenet1_1", "fire3"),
        ("squeezenet1_1", "fire8"),
        ("vgg_mini", "conv3_2"),
        ("resnet18", "layer2.0.relu_1"),
        ("densenet121", "features.transition1.pool"),
    ],
)
def test_receptive_field_is_what_the_gradient_reaches(name: str, layer: str) -> None:
    """The measured receptive field of one position, and the stride between neighbours."""
    own = layers_of(name)
    state = {key: torch.full(tensor.shape, 0.01) for key, tensor in whole(name).items()}
    cut = own.cut(own.filled(state, [layer]), layer)
    for path, module in list(cut.named_modules()):  # a maximum would pass one pixel only
        if isinstance(module, nn.MaxPool2d):
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, bool(module.ceil_mode))
            cut.add_submodule(path, average)
    image = torch.ones(1, 3, 224, 224, requires_grad=True)
    maps = cut(image)
    spans = []
    for shift in (0, 1):
        row = maps.shape[2] // 2 + shift
        (slope,) = torch.autograd.grad(maps[0, -1, row, row], image, retain_graph=True)
        rows = slope[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        spans.append((int(rows[0]), int(rows[-1])))
    field = own.layers[layer].field
    assert spans[0][1] - spans[0][0] + 1 == field.side
    assert spans[1][0] - spans[0][0] == field.stride
    assert spans[0][0] == field.middle + maps.shape[2] // 2 * field.stride - field.side / 2


def test_networks_are_loaded_once_frozen_and_share_modules(tmp_path: Path) -> None:
    """The parameters are shared by all layers; they need no gradient, and no ReLU works in place."""
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    source = networks(tmp_path)
    network = source.get("vgg11")
    assert source.get("vgg11") is network
    low, high = network.layer("conv1_1").cut, network.layer("conv3_2").cut
    assert low.get_submodule("features.0") is high.get_submodule("features.0")
    assert not any(parameter.requires_grad for parameter in high.parameters())
    assert not any(module.training for module in high.modules())
    assert not any(module.inplace for module in high.modules() if isinstance(module, nn.ReLU))
