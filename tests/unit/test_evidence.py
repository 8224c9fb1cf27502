"""The method `evidence` and the metric `invention`, through the engine, on the bundled network."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.drawings import scene
from shared.images import Frame
from tests.recompute import VGG_BLOCKS, PlainVgg, numbers
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.quality import map_ssim
from worker.engine.questions import Answer, OutOfMemory, Picture, Question, Ticket
from worker.engine.speed import measured_speed
from worker.engine.torch_batch import TorchBatch
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

LAYER = "conv3_1"
PICTURE: Picture = np.asarray(scene(5, 96).image)
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "evidence", "max_invention": 0.15},
    {"method": "evidence"},
    {"method": "suppression"},
    {"method": "lrp"},
)


@pytest.fixture(scope="module")
def answers(device: TorchDevice) -> Iterator[list[Answer]]:
    """One kernel by all of `METHODS`."""
    engine = Engine(device)
    kernel = engine.call(device.ranking, "vgg_mini", LAYER, PICTURE)[0]
    asked = [question(kernel, **options) for options in METHODS]
    found = dict(engine.ask(asked))
    yield [answer for number in range(len(asked)) if isinstance(answer := found[number], Answer)]
    engine.close()


def question(kernel: int, picture: Picture = PICTURE, **options: Any) -> Question:
    """A quick question."""
    return Question("vgg_mini", LAYER, picture, kernel, 1.0, 1.0, effort="quick", **options)


def png(picture: Picture) -> bytes:
    """The picture as a PNG."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_method_s_invention_is_that_of_the_formula(answers: list[Answer]) -> None:
    """Against a second implementation of the network, on the delivered picture; the mean of the layers."""
    assert len(answers) == len(METHODS)
    network = PlainVgg(WEIGHTS_FILE, VGG_BLOCKS["vgg_mini"], LAYER, VggMini.MEAN, VggMini.STD)
    for answer in answers:
        assert (answer.metrics.invention_beyond_blank or 0) <= (answer.metrics.invention or 0)
        reported = numbers(network, png(PICTURE), png(answer.picture), 96, 0)["invention"]
        assert answer.metrics.invention == pytest.approx(reported, rel=1e-4)
        by_layer = answer.metrics.invention_by_layer
        assert by_layer is not None
        assert list(by_layer) == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
        assert answer.metrics.invention == pytest.approx(np.mean(list(by_layer.values())), rel=1e-6)


def test_what_is_left_of_the_map_without_colour(answers: list[Answer], device: TorchDevice) -> None:
    """Against the layer's maps of X̂ in grey about the mean colour, computed pixel by pixel."""
    layer = device.networks.get("vgg_mini").layer(LAYER)
    mean = np.array(VggMini.MEAN)
    for answer, options in zip(answers, METHODS, strict=True):
        away = (answer.picture / 255 - mean) @ np.array([0.299, 0.587, 0.114])
        grey = (np.clip(mean + away[:, :, None], 0, 1) - mean) / np.array(VggMini.STD)
        with torch.no_grad():
            maps = layer.features(torch.from_numpy(grey.transpose(2, 0, 1)[None]).float())[0]
        kernel = device.ranking("vgg_mini", LAYER, PICTURE)[0]
        expected = map_ssim(maps[kernel], torch.from_numpy(answer.maps["before"]))
        assert answer.metrics.ssim_grey == pytest.approx(expected, abs=1e-4), options
        assert answer.metrics.ssim is not None
        assert (answer.metrics.ssim_grey or 0) < answer.metrics.ssim


def test_evidence_keeps_its_bound_and_takes_only_away(answers: list[Answer]) -> None:
    """The bound holds in 8 bits; with weight or bound the invention is lower than by the paper's method."""
    bounded, weighed, paper, _ = answers
    assert bounded.target_met
    assert bounded.gamma is None
    assert (bounded.metrics.invention_beyond_blank or 0) <= 0.15
    assert weighed.target_met is None
    assert weighed.gamma == pytest.approx(1.4)  # 0.35 for each of the four layers below
    assert paper.metrics.invention is not None
    for answer in (bounded, weighed):
        assert answer.metrics.invention is not None
        assert answer.metrics.invention < 0.7 * paper.metrics.invention
        grey = np.array(VggMini.MEAN) * 255
        low, high = np.minimum(PICTURE, grey), np.maximum(PICTURE, grey)
        assert (answer.picture >= low - 1).all()
        assert (answer.picture <= high + 1).all()


def test_problems_of_an_image_share_what_it_causes(device: TorchDevice) -> None:
    """Submitted at once, later, or as another array of the same pixels; another image has its own bounds."""
    first, *rest = (Ticket(question(kernel, **METHODS[1])) for kernel in device.ranking("vgg_mini", LAYER, PICTURE)[:3])
    batch = device.batch(first.question)
    assert isinstance(batch, TorchBatch)
    batch.add([first])
    batch.step()
    batch.add([rest[0], Ticket(question(rest[1].question.kernel, PICTURE.copy(), **METHODS[1]))])
    other = np.asarray(scene(6, 96).image)
    batch.add([Ticket(question(device.ranking("vgg_mini", LAYER, other)[0], other, **METHODS[1]))])
    (part,) = batch.parts
    assert len({id(bounds) for bounds in part.problems.activation_bounds[:3]}) == 1
    assert len({id(bounds) for bounds in part.problems.activation_bounds}) == 2
    batch.drop([ticket for ticket, _ in batch.tickets.values()])


def test_the_term_counts_in_memory_and_pace(device: TorchDevice) -> None:
    """A tapped layer is measured by itself, with its saved tensors."""
    network = device.networks.get("vgg_mini")
    plain = measured_speed(network.layer(LAYER).cut, Frame(96, 96), torch.device("cpu"))
    watched = measured_speed(network.layer(LAYER).tapped, Frame(96, 96), torch.device("cpu"))
    assert watched.bytes > plain.bytes
    assert network.layer(LAYER).tapped is network.layer(LAYER).tapped


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("vgg16_bn", "conv2_1", ["conv1_1", "conv1_2"]),
        ("vgg16", "conv1_1", []),
        ("squeezenet1_1", "fire2_squeeze", ["conv1"]),
        (
            "squeezenet1_1",
            "fire3",
            [
                "conv1",
                "fire2_squeeze",
                "features.3.expand1x1_activation",
                "features.3.expand3x3_activation",
                "fire3_squeeze",
            ],
        ),
    ],
)
def test_the_layers_below_have_names(name: str, layer: str, expected: list[str]) -> None:
    """The names of the catalogue, or torchvision's."""
    own = layers_of(name)
    tensors = {key: torch.zeros(meta.shape) for key, meta in ARCHITECTURES[name].module().state_dict().items()}
    cut = own.cut(own.filled(tensors, [layer]), layer)
    assert own.below(cut) == tuple(expected)


def test_who_asks_for_no_weight_and_who_does_are_answered_together(device: TorchDevice) -> None:
    """Whichever thread is first."""
    engine = Engine(device)
    kernels = engine.call(device.ranking, "vgg_mini", LAYER, PICTURE)[:2]
    for weights in ((0.0, 3.0), (3.0, 0.0)):
        asked = [
            question(kernel, method="evidence", gamma=gamma, iterations=20)
            for kernel, gamma in zip(kernels, weights, strict=True)
        ]
        found = dict(engine.ask(asked))
        assert all(isinstance(answer, Answer) for answer in found.values())
    engine.close()


def test_memory_that_runs_out_before_the_first_step_is_reported(
    device: TorchDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for an image's bounds the batch returns the question, and it can be added again."""
    layer = device.networks.get("vgg_mini").layer(LAYER)
    batch = device.batch(question(0, method="evidence"))
    bounds = layer.tapped.bounds

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    ticket = Ticket(question(device.ranking("vgg_mini", LAYER, PICTURE)[0], method="evidence", iterations=2))
    monkeypatch.setattr(layer.tapped, "bounds", full)
    assert batch.add([ticket]) == [(ticket, OutOfMemory())]
    assert len(batch) == 0
    assert batch.step() == []
    monkeypatch.setattr(layer.tapped, "bounds", bounds)
    assert batch.add([ticket]) == []
    answered = [pair for _ in range(3) for pair in batch.step()]
    assert [type(answer) for _, answer in answered] == [Answer]
