"""The benchmark of usefulness: crops, pairs and answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from benchmarks.crops import Crops, cut
from benchmarks.usefulness import answered, markdown, summary
from shared.drawings import scene


def crops(peaks: list[float], of: list[int]) -> Crops:
    """Crops with these activations of one kernel."""
    pictures = [np.zeros((1, 1, 3), np.uint8)] * len(peaks)
    return Crops(pictures, np.array(of), np.array(peaks, np.float32)[:, None])


def test_crops_are_squares_at_even_steps() -> None:
    """Three along a photograph's shorter side, with the number of each one's photograph."""
    pictures, of = cut([scene(1, 60).image, Image.new("RGB", (200, 100), (255, 0, 0))], 32, 16)
    assert {picture.shape for picture in pictures} == {(32, 32, 3)}
    assert of.tolist() == [0] * 25 + [1] * 55
    assert (pictures[-1] == (255, 0, 0)).all()


def test_the_best_are_not_all_of_one_photograph() -> None:
    """At most three of one photograph if that suffices, in order."""
    found = crops([9, 8, 7, 6, 5, 1, 4, 3], [0, 0, 0, 0, 0, 1, 1, 2])
    assert found.best(0, 5) == [0, 1, 2, 6, 7]
    assert crops([9, 8, 7, 6, 5], [0] * 5).best(0, 4) == [0, 1, 2, 3]


def test_a_pair_is_of_one_that_activates_it_much_and_one_of_the_lower_half() -> None:
    """The same pairs for every method, however few photographs there are, and no pair without an answer."""
    peaks = np.random.default_rng(0).random(1000).tolist()
    found = crops(peaks, [number % 10 for number in range(1000)])
    pairs = found.pairs(0)
    assert pairs == found.pairs(0)
    assert len(pairs) == 20
    assert all(peaks[high] >= np.quantile(peaks, 0.9) > np.median(peaks) >= peaks[low] for high, low in pairs)
    assert all(peaks[one] >= peaks[other] for (one, _), (other, _) in pairwise(pairs))
    rarely = crops([1.0] * 5 + [0.0] * 995, [number % 10 for number in range(1000)])
    assert len(rarely.pairs(0)) == 5


def test_the_table_has_the_mean_and_its_standard_error() -> None:
    """Over kernels; None for a single one."""
    rows = [{"layer": "conv4_3", "eye": "description", "method": "lrp", "right": right} for right in (0.5, 0.7, 0.9)]
    rows.append({"layer": "conv5_3", "eye": "description", "method": "lrp", "right": 1.0})
    found = summary(rows)
    assert found[0]["right"] == pytest.approx(0.7)
    assert found[0]["error"] == pytest.approx(0.2 / 3**0.5)
    assert list(markdown(found))[2] == "| lrp | 0.70 ± 0.12 | 1.00 |"


def test_the_crop_that_is_more_like_the_nine_is_the_answer() -> None:
    """Ties count half; without descriptions of the nine everything is a tie."""
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert answered([one, one], [one, other, one], [other, one, one]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert answered([one, other, one], [one], [other]) == 1
    assert answered([None], [one], [other]) == answered([], [one], [other]) == 0.5
    assert answered([one], [None], [one]) == 0
