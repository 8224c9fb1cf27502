"""The main job on ImageNet networks and photographs, which CI has and a user's machine need not.

`KERNELSCOPE_TEST_WEIGHTS` (partial VGGs, SqueezeNet), `KERNELSCOPE_TEST_VGG16` (the complete VGG-16) and
`KERNELSCOPE_TEST_IMAGES` name the folders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kernelscope.client import Client
from kernelscope.client.options import Effort
from kernelscope.stack import Stack
from shared import images
from shared.schemas import ItemResult, Status
from tests.conftest import FULL, noise, png
from tests.integration.conftest import local_settings
from tests.recompute import VGG_BLOCKS, PlainVgg, numbers
from worker.engine import quality
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question
from worker.methods.suppression import Problems, ReferenceSolver, losses, solve
from worker.networks.loaded import Networks

pytestmark = pytest.mark.weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VGG16_MEAN = (0.485020, 0.457957, 0.407604)  # of the complete file
PROBLEMS = [
    ("vgg16", "conv1_1", 16, "n07747607_orange.JPEG"),
    ("vgg16", "conv2_2", 19, "n07742313_Granny_Smith.JPEG"),
    ("vgg19", "conv3_4", 77, "n02437312_Arabian_camel.JPEG"),
    ("squeezenet1_1", "features.12", 100, "n03769881_minibus.JPEG"),
]


def folder(name: str) -> Path:
    """A folder of the environment."""
    path = os.environ.get(name)
    if not path:
        pytest.skip(f"{name} is not set")
    return Path(path)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The weights folder."""
    return folder("KERNELSCOPE_TEST_WEIGHTS")


def photograph(name: str) -> bytes:
    """A photograph's file."""
    return (folder("KERNELSCOPE_TEST_IMAGES") / name).read_bytes()


@pytest.fixture(scope="module")
def client(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a stack with these weights."""
    settings = local_settings(tmp_path_factory.mktemp("real"), weights_dir=weights, preload=("vgg16",))
    with Stack(settings, print).running() as stack, Client(stack.url) as client:
        yield client


def explained(client: Client, model: str, layer: str, kernel: int, image: bytes) -> ItemResult:
    """The one result of a job that must succeed."""
    effort: Effort = "quick" if model == "vgg19" and not FULL else "standard"
    job = client.explain([image], model=model, layer=layer, kernels=str(kernel), effort=effort).wait()
    assert job.status is Status.SUCCEEDED, job.error
    return job.results[0]


@pytest.mark.parametrize(("model", "layer", "kernel", "name"), PROBLEMS)
def test_an_explanation_of_a_photograph(
    client: Client, weights: Path, model: str, layer: str, kernel: int, name: str
) -> None:
    """It succeeds; on the VGGs far below start and blank picture with the map preserved, by recomputed numbers."""
    image = photograph(name)
    result = explained(client, model, layer, kernel, image)
    assert result.metrics is not None
    assert result.losses is not None
    assert result.loss_start is not None
    assert result.loss_blank is not None
    assert result.weights is not None
    assert result.weights.source.startswith(model)
    print(model, layer, kernel, result.losses.total, result.metrics.ssim, result.loss_start, result.loss_blank)
    assert result.losses_float is not None
    assert result.metrics_float is not None
    assert result.losses.total <= max(1.01 * result.losses_float.total, result.losses_float.total + 0.01)
    assert (result.metrics.ssim or 0) >= (result.metrics_float.ssim or 0) - 0.01
    if model not in VGG_BLOCKS:
        return
    assert result.losses.total <= 0.8 * min(result.loss_start, result.loss_blank)
    assert result.metrics.ssim is not None
    assert result.metrics.ssim >= 0.9
    network = PlainVgg(weights / result.weights.source, VGG_BLOCKS[model], layer, MEAN, STD)
    delivered = client.file(result.artifacts["optimized.png"])
    reported = {**result.metrics.model_dump(), **result.losses.model_dump()}
    for metric, value in numbers(network, image, delivered, 224, kernel).items():
        assert reported[metric] == pytest.approx(value, abs=1e-3, rel=1e-3), metric


def test_the_deepest_layer_by_both_methods(tmp_path: Path) -> None:
    """VGG-16 conv5_3 over HTTP: evidence preserves the map with little invention, by recomputed numbers."""
    weights, image = folder("KERNELSCOPE_TEST_VGG16"), photograph("n07747607_orange.JPEG")
    settings = local_settings(tmp_path, weights_dir=weights, preload=("vgg16",))
    with Stack(settings, print).running() as stack, Client(stack.url) as client:
        job = client.explain(
            [image], layer="conv5_3", kernels=[298], methods=["evidence", "suppression"], effort="quick"
        ).wait()
        assert job.status is Status.SUCCEEDED, job.error
        evidence, paper = job.results
        for result in (evidence, paper):
            assert result.metrics is not None
            assert result.losses is not None
            assert result.weights is not None
            print(result.method, result.losses.total, result.metrics.ssim, result.metrics.invention, result.note)
            network = PlainVgg(weights / result.weights.source, VGG_BLOCKS["vgg16"], "conv5_3", VGG16_MEAN, STD)
            reported = {**result.metrics.model_dump(), **result.losses.model_dump()}
            delivered = client.file(result.artifacts["optimized.png"])
            for metric, value in numbers(network, image, delivered, 224, 298).items():
                assert reported[metric] == pytest.approx(value, abs=1e-3, rel=2e-3), metric
            assert (result.metrics.ssim or 0) >= 0.95
        assert evidence.gamma == pytest.approx(0.35 * 12)
        assert evidence.target_met is None
        assert evidence.note is None
        assert paper.note is not None
        assert "Compare it with the picture by evidence" in paper.note
        assert evidence.metrics is not None
        assert evidence.metrics.invention is not None
        assert evidence.metrics.invention <= 0.1
        assert list(evidence.metrics.invention_by_layer or {})[::11] == ["conv1_1", "conv5_2"]


def test_an_explanation_beside_twenty_rankings(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """16 pictures each (4 in `make test-slow`) on VGG-16 conv5_3: less than ten times as long as alone."""
    settings = local_settings(tmp_path, weights_dir=folder("KERNELSCOPE_TEST_VGG16"), preload=("vgg16",))
    image = photograph("n07747607_orange.JPEG")
    pictures = [png(noise(seed=seed)) for seed in range(16 if FULL else 4)]
    with Stack(settings, print).running() as stack, Client(stack.url) as client:

        def seconds(beta: float) -> float:
            begin = time.monotonic()
            job = client.explain([image], layer="conv3_3", kernels=[240], effort="quick", beta=beta).wait()
            assert job.status is Status.SUCCEEDED, job.error
            return time.monotonic() - begin

        seconds(0.98)  # the pace of the layer is measured
        alone = seconds(0.99)
        rankings = [client.activations(pictures, layer="conv5_3") for _ in range(20)]
        beside = seconds(1.0)
        record_property("times_as_long", round(beside / alone, 1))
        print(f"alone {alone:.1f} s, beside twenty rankings {beside:.1f} s")
        assert beside <= 10 * alone
        assert {ranking.wait().status for ranking in rankings} == {Status.SUCCEEDED}


def test_a_batch_mate_changes_a_real_explanation_by_less_than_two_percent(weights: Path) -> None:
    """CPU kernels depend on the batch size; the loss and the reason to stop do not."""
    device = TorchDevice(Networks(weights, torch.device("cpu"), download=False))
    engine = Engine(device)
    for model, layer, name in (("vgg16", "conv1_1", PROBLEMS[0][3]), ("squeezenet1_1", "fire2", PROBLEMS[2][3])):
        picture = np.asarray(images.resized(images.decode(photograph(name), 10**8), images.Frame(224, 224)))
        kernels = engine.call(device.ranking, model, layer, picture)[: 3 if FULL else 2]
        asked = [Question(model, layer, picture, kernel, 1.0, 1.0, "fast", "standard", None) for kernel in kernels]
        together = dict(engine.ask(asked))
        for number in (0, 2) if FULL else (0,):
            ((_, alone),) = engine.ask([asked[number]])
            mate = together[number]
            assert isinstance(alone, Answer)
            assert isinstance(mate, Answer)
            print(model, layer, kernels[number], alone.losses_float.total, mate.losses_float.total, alone.stopped)
            assert alone.losses_float.total == pytest.approx(mate.losses_float.total, rel=0.02)
            assert alone.stopped == mate.stopped
    engine.close()


def test_partial_weights_are_reported(client: Client) -> None:
    """VGG-16 ends at conv2_2 here: `GET /models` says so."""
    vgg16 = client.model("vgg16")
    assert [layer.name for layer in vgg16.layers if layer.available] == [
        "conv1_1",
        "conv1_2",
        "conv2_1",
        "conv2_2",
    ]
    assert vgg16.weights_sha256 is not None


def test_the_reference_procedure_gives_the_reference_s_figures(weights: Path) -> None:
    """VGG-16 conv1_1, kernel 16 (orange): loss 0.620 ± 0.002 and SSIM 0.998 ± 0.002 after 3,000 iterations."""
    network = Networks(weights, torch.device("cpu"), download=False).get("vgg16")
    cut = network.layer("conv1_1").cut
    picture = images.resized(images.decode(photograph("n07747607_orange.JPEG"), 10**8), images.Frame(224, 224))
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    image = network.space.from_bytes(pixels)
    features = network.layer("conv1_1").features(image)
    one = torch.ones(1)
    problem = Problems.pose(image, features, torch.tensor([16]), one, one)
    (solution,) = solve(cut, problem, ReferenceSolver(budget=3000))
    after = network.layer("conv1_1").features(solution.x[None])
    total = float(losses(problem, after, solution.x[None]).total)
    likeness = quality.map_ssim(after[0, 16], features[0, 16])
    print("reference:", total, likeness)
    assert total == pytest.approx(0.620, abs=0.002)
    assert likeness == pytest.approx(0.998, abs=0.002)
