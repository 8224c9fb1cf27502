"""Explanations in networks of every family by the engine, with random weights, against float64 formulas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.drawings import scene
from shared.errors import MethodNotApplicable
from tests.unit.graphs import plain_run
from tests.unit.weights_files import whole
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.jobs import activations
from worker.methods.suppression import Problems, silent
from worker.methods.suppression.problem_batch import SILENT
from worker.networks.architectures import ARCHITECTURES
from worker.networks.loaded import Networks

# A network, a layer, and what is watched below it; after ReLU, ReLU6, SiLU, Hardswish and GELU, additions, and nothing.
CASES = [
    ("resnet18", "layer1.1.relu_1"),
    ("resnet18", "layer2.0.bn2"),
    ("densenet121", "features.transition1.pool"),
    ("googlenet", "inception3a.cat"),
    ("mobilenet_v2", "features.3.conv.1.2"),
    ("mobilenet_v2", "features.3.add"),
    ("mobilenet_v3_small", "features.3.block.1.2"),
    ("efficientnet_b0", "features.2.1.add"),
    ("efficientnet_b0", "features.3.0.block.1.2"),
    ("regnet_y_400mf", "trunk_output.block2.block2-0.activation"),
    ("shufflenet_v2_x0_5", "stage2.1.cat"),
    ("mnasnet0_5", "layers.8.1.add"),
    ("convnext_tiny", "features.1.0.add"),
    ("convnext_tiny", "features.1.1.block.4"),
]


SOON = (0, 2, 5, 7, 13)  # of these; `make test-slow` tries the others
TRIED = [case if number in SOON else pytest.param(*case, marks=pytest.mark.slow) for number, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A device with an empty weights folder."""
    found = Engine(TorchDevice(Networks(tmp_path_factory.mktemp("weights"), torch.device("cpu"), download=False)))
    yield found
    found.close()


def at_hand(engine: Engine, name: str) -> TorchDevice:
    """The device with a file of random weights of this network."""
    device = engine.device
    assert isinstance(device, TorchDevice)
    file = device.networks.folder / f"{name}.safetensors"
    if not file.exists():
        save_file(scaled(name), file)
    return device


def scaled(name: str) -> dict[str, Tensor]:
    """Random weights with batch statistics of a picture, as in a trained network."""
    state = whole(name)
    model = ARCHITECTURES[name].module().to_empty(device="cpu")
    model.load_state_dict(state, strict=False) if name != "mnasnet0_5" else _assign(model, state)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.training = 1.0, True
            module.reset_running_stats()
    size = ARCHITECTURES[name].frame.width
    pictures = torch.stack([torch.from_numpy(np.asarray(scene(seed, size).image).copy()) for seed in (1, 2)])
    plain_run(model, (pictures.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225, training=True)
    kept = model.state_dict()
    return {key: kept[key].contiguous() for key in state}


def _assign(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The load without MNASNet's version check."""
    own = model.state_dict()
    for key, tensor in state.items():
        own[key].copy_(tensor)


@pytest.mark.parametrize(("name", "layer"), TRIED)
def test_a_kernel_is_explained(engine: Engine, name: str, layer: str) -> None:
    """Below start and blank picture by both methods, less invention by evidence, and equal to the formulas."""
    device = at_hand(engine, name)
    picture = np.array(scene(5, ARCHITECTURES[name].frame.width).image)
    kernel = engine.call(device.ranking, name, layer, picture)[1]
    asked = [
        Question(name, layer, picture, kernel, 1.0, 1.0, method=method, iterations=60)
        for method in ("suppression", "evidence")
    ]
    found = dict(engine.ask(asked))
    paper, evidence = found[0], found[1]
    assert isinstance(paper, Answer)
    assert isinstance(evidence, Answer)
    for answer in (paper, evidence):
        assert answer.losses.total < min(answer.loss_start, answer.loss_blank)
    assert (evidence.metrics.invention or 0) < (paper.metrics.invention or 0) + 1e-6
    check(device, asked[0], paper)


def check(device: TorchDevice, question: Question, answer: Answer) -> None:
    """The numbers of a result by torchvision's module in float64, without cuts, taps or solvers."""
    name, kernel = question.model, question.kernel
    loaded = device.networks.get(name)
    own = loaded.layer(question.layer)
    model = ARCHITECTURES[name].module().to_empty(device="cpu")
    _assign(model, load_file(device.networks.folder / f"{name}.safetensors"))
    model.double()
    before, after = (
        plain_run(model, loaded.space.from_bytes(torch.tensor(picture).permute(2, 0, 1)[None]).double())
        for picture in (question.picture, answer.picture)
    )
    f, g = before[question.layer][0], after[question.layer][0]
    if f.shape[0] == f.shape[1]:  # channels last, in ConvNeXt's blocks
        f, g = f.permute(2, 0, 1), g.permute(2, 0, 1)
    others = torch.arange(len(f)) != kernel
    preservation = float((g[kernel] - f[kernel]).norm() / f[kernel].norm())
    suppression = float(g[others].abs().sum() / f[others].abs().sum())
    assert answer.losses.preservation == pytest.approx(preservation, rel=2e-3, abs=1e-4)
    assert answer.losses.suppression == pytest.approx(suppression, rel=2e-3, abs=1e-4)
    shares = []
    for node in own.below:
        x, y = before[node], after[node]
        beyond = (y - x.clamp_min(0)).clamp_min(0).sum() + (x.clamp_max(0) - y).clamp_min(0).sum()
        shares.append(float(beyond / x.abs().sum()))
    assert list(answer.metrics.invention_by_layer or {}) == list(own.below)
    assert answer.metrics.invention == pytest.approx(np.mean(shares), rel=2e-3, abs=1e-5)


def test_a_baseline_without_a_rule_is_refused(engine: Engine) -> None:
    """With the reason; other baselines answer, also in networks with additions and concatenations."""
    for name, layer, refused in (
        ("resnet18", "layer1.1.relu_1", set()),
        ("googlenet", "inception3a.cat", set()),
        ("resnet18", "layer2.0.bn2", set()),
        ("mobilenet_v2", "features.3.add", {"lrp"}),
        ("densenet121", "features.transition1.pool", {"lrp"}),
        ("efficientnet_b0", "features.2.1.add", {"lrp", "deconvnet", "guided_backprop"}),
    ):
        picture = np.array(scene(5, 224).image)
        kernel = engine.call(at_hand(engine, name).ranking, name, layer, picture)[0]
        methods = ("guided_backprop", "deconvnet", "lrp")
        found = dict(engine.ask([Question(name, layer, picture, kernel, 1.0, 1.0, method=one) for one in methods]))
        for number, method in enumerate(methods):
            if method in refused:
                assert isinstance(found[number], MethodNotApplicable), (name, method)
                assert "rule" in str(found[number])
            else:
                assert isinstance(found[number], Answer), (name, method, found[number])


def test_silence_is_a_threshold_where_maps_have_a_sign() -> None:
    """A kernel with a thousandth of the highest |F| is silent; after a ReLU only one with 0 is."""
    maps = torch.zeros(1, 3, 2, 2)
    maps[0, 0, 0, 0], maps[0, 1, 1, 1] = -2.0, 0.001
    assert silent(maps).tolist() == [[False, True, True]]
    assert silent(maps.abs()).tolist() == [[False, False, True]]
    image, one = torch.zeros(1, 3, 4, 4), torch.ones(1)
    assert bool(Problems.pose(image, maps, torch.tensor([1]), one, one, signed=True).silent)
    assert activations.SILENT == SILENT  # what is ranked as active, and what is explained
