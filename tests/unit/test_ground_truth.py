"""The planted network responds as specified, and the scores are counted correctly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.ground_truth import concordance, score
from benchmarks.labels import Label, shown
from benchmarks.planted import CONV1, CONV2, LAYERS, SIDE, PlantedNetworks, drivers, network, overlap, picture
from shared.drawings import COLOURS, scene

SPACE = PlantedNetworks().planted.space


def shown_to(colour: tuple[int, int, int], stripes: str = "") -> Tensor:
    """X of a square of one colour on grey, plain, or striped with black."""
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pixels[16:32, 16:32] = colour
    if stripes == "across":
        pixels[16:32:4, 16:32] = pixels[17:32:4, 16:32] = 0
    return SPACE.from_bytes(torch.from_numpy(pixels).permute(2, 0, 1)[None])


def active(layer: str, image: Tensor) -> set[str]:
    """The kernels that respond to an image."""
    maps = PlantedNetworks().planted.layer(layer).features(image)[0]
    return {name for name, one in zip(LAYERS[layer], maps, strict=True) if one.max() > 0}


def test_a_colour_s_kernel_responds_to_its_colour_only() -> None:
    """Each of the six, beside the edges of its patch."""
    for name in COLOURS:
        rgb = tuple(255 * (name in group) for group in (("red", "yellow", "magenta"), ("yellow", "green", "cyan"),
                                                        ("cyan", "blue", "magenta")))  # fmt: skip
        assert active("conv1", shown_to(rgb)) & set(COLOURS) == {name}  # type: ignore[arg-type]


def test_conjunctions_need_both_and_disjunctions_any() -> None:
    """A red square activates red, red or green, and red edges, but no kernel for green alone."""
    found = active("conv2", shown_to((255, 0, 0)))
    assert found == {"red and horizontal", "red and vertical", "red", "red or green", "red, green or blue"}
    assert not active("conv2", shown_to((128, 128, 128)))
    assert "red and horizontal" not in active("conv2", shown_to((0, 255, 0), "across"))


@pytest.mark.parametrize(("layer", "kernel"), [("conv1", "red"), ("conv1", "vertical"), ("conv2", "red and vertical")])
def test_drivers_are_what_the_map_misses(layer: str, kernel: str) -> None:
    """Against removing one value after the other."""
    image = SPACE.from_bytes(torch.from_numpy(picture(1).copy()).permute(2, 0, 1)[None])
    number, cut = LAYERS[layer].index(kernel), PlantedNetworks().planted.layer(layer).cut
    found = drivers(cut, image, number)
    whole = cut(image)[0, number].clamp_min(0).sum()
    falls = torch.zeros(3, SIDE, SIDE)
    for channel in range(3):
        for row in range(0, SIDE, 5):
            for column in range(SIDE):
                without = image.clone()
                without[0, channel, row, column] = 0
                falls[channel, row, column] = whole - cut(without)[0, number].clamp_min(0).sum()
    some = falls[:, ::5]
    clear = (some - 0.1 * falls.max()).abs() > 1e-3  # not at the threshold itself
    assert found.any()
    assert torch.equal(found[:, ::5][clear], (some >= 0.1 * falls.max())[clear])


def test_the_names_are_the_kernels() -> None:
    """One kernel each."""
    assert [layer.out_channels for layer in network() if isinstance(layer, torch.nn.Conv2d)] == [len(CONV1), len(CONV2)]
    assert overlap("conv2", 6, 10) == 0.5  # red; red or green
    assert overlap("conv2", 6, 7) == 0


def test_precision_recall_and_f1() -> None:
    """Of four values two are true; three are kept, one of them true."""
    truth = np.array([True, True, False, False])
    found = score(np.array([1.0, 0.0, 0.5, 0.5]), truth)
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == 0.5
    assert found["f1"] == pytest.approx(0.4)
    assert score(np.array([1.0, 0.9, 0.01, 0.0]), truth)["f1"] == 1
    assert score(np.array([1.0, 0.9, 0.01, 0.0]), truth)["average_precision"] == 1
    assert score(np.zeros(4), truth)["f1"] == 0


def test_what_a_scene_shows_of_a_label() -> None:
    """The ink for a colour, the whole shape for a texture; nothing for a colour that does not occur."""
    drawing = scene(0, 96)
    figure = drawing.figures[0]
    colour = min(COLOURS, key=lambda name: abs((COLOURS[name] - figure.hue + 180) % 360 - 180))
    assert (shown(drawing, Label(0, colour, None, 3.0)) == (drawing.shapes[0] & drawing.inks[0])).all()
    assert (shown(drawing, Label(0, None, figure.texture, 3.0)) == drawing.shapes[0]).all()
    absent = set(COLOURS) - {
        min(COLOURS, key=lambda name: abs((COLOURS[name] - one.hue + 180) % 360 - 180)) for one in drawing.figures
    }
    assert not shown(drawing, Label(0, absent.pop(), None, 3.0)).any()


def test_concordance() -> None:
    """Pairs with equal truth do not count; ties count half."""
    assert concordance([(0.9, 1), (0.5, 0), (0.6, 0)]) == 1
    assert concordance([(0.9, 0), (0.5, 1)]) == 0
    assert concordance([(0.5, 0), (0.5, 1)]) == 0.5
