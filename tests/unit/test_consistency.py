"""The two scores: what is alike, what is not, and that they rank the planted network's kernels as the truth does."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from api.pictures.consistency import Description, Maps, consistency, description, discrimination, likeness
from benchmarks.ground_truth import concordance, described
from benchmarks.planted import alternatives, overlap


def patch(colour: tuple[float, float, float], pattern: str = "plain", x: int = 10, y: int = 10) -> Maps:
    """A square of 12 pixels of one colour on nothing, (3, 48, 48)."""
    picture = np.zeros((3, 48, 48))
    picture[:, y : y + 12, x : x + 12] = np.array(colour)[:, None, None]
    if pattern == "across":
        picture[:, ::4] = picture[:, 1::4] = 0
    if pattern == "along":
        picture[:, :, ::4] = picture[:, :, 1::4] = 0
    return picture


def of(picture: Maps, stride: int = 1) -> Description:
    """Its description."""
    found = description(picture, stride)
    assert found is not None
    return found


def test_where_a_thing_lies_and_how_faint_it_is_do_not_matter() -> None:
    """The same patch elsewhere, or at a tenth of its contrast, is the same."""
    red = of(patch((1, -1, -1)))
    assert likeness(red, red) == pytest.approx(1)
    assert likeness(red, of(patch((1, -1, -1), x=30, y=4))) == pytest.approx(1, abs=1e-9)
    assert likeness(red, of(0.1 * patch((1, -1, -1)))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (patch((1, -1, -1)), patch((-1, 1, -1))),
        (patch((1, -1, -1)), patch((-1, 1, 1))),
        (patch((1, 1, 1), "across"), patch((1, 1, 1), "along")),
    ],
    ids=["red and green", "red and its complement", "across and along"],
)
def test_colours_and_patterns_matter(one: Maps, other: Maps) -> None:
    """Each of them is less like the other than like itself elsewhere."""
    assert likeness(of(one), of(other)) < 0.9


def test_a_blank_picture_says_nothing() -> None:
    """No description; scores of too few pictures are None."""
    assert description(np.zeros((3, 16, 16)), 1) is None
    assert consistency({0: of(patch((1, 0, 0)))}) is None
    assert discrimination({0: of(patch((1, 0, 0)))}, []) is None


@pytest.mark.parametrize("stride", [1, 2, 4, 16])
def test_every_layer_s_stride_is_fine(stride: int) -> None:
    """Up to maps that are smaller than a window."""
    assert np.linalg.norm(of(patch((1, 0, 0)), stride)) == pytest.approx(1)


def test_discrimination_asks_whether_kernel_or_image_decides() -> None:
    """1 where each kernel shows its own colour everywhere, 0 where all show the image's, ½ where all is one."""
    red, green = (of(patch(colour)) for colour in ((1.0, -1.0, -1.0), (-1.0, 1.0, -1.0)))
    assert discrimination({0: red, 1: red}, [{0: green, 1: green}]) == 1
    assert discrimination({0: red, 1: green}, [{0: red, 1: green}]) == 0
    assert discrimination({0: red, 1: red}, [{0: red, 1: red}]) == 0.5


def test_they_rank_the_planted_kernels_as_the_truth_does() -> None:
    """More things a kernel responds to: less consistent. Less that two have in common: better distinguished."""
    found: dict[int, dict[int, Any]] = described("conv2", 8, effort="quick", iterations=60)
    scores = {kernel: consistency(pictures) for kernel, pictures in found.items()}
    several = {kernel: score for kernel, score in scores.items() if score is not None}
    truth = alternatives("conv2")
    assert concordance([(score, -truth[kernel]) for kernel, score in several.items()]) >= 0.9
    pairs = [
        (reported, -overlap("conv2", one, other))
        for one, other in combinations(several, 2)
        if (reported := discrimination(found[one], [found[other]])) is not None
    ]
    assert concordance(pairs) >= 0.75
