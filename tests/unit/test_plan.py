"""A request becomes items, and items become slices."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.schemas import SLICE_ITEMS, ExplainRequest, plan, variants

WEIGHTS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=3, unique=True)


def request(images: int, kernels: object, alpha: list[float], beta: list[float]) -> ExplainRequest:
    """A valid request."""
    digests = [f"{number:064x}" for number in range(images)]
    fields = {"images": digests, "layer": "conv1_1", "kernels": kernels, "alpha": alpha, "beta": beta}
    return ExplainRequest.model_validate(fields)


@given(st.integers(1, 4), st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True), WEIGHTS, WEIGHTS)
def test_every_combination_once_in_order_in_slices_of_at_most_16(
    images: int, kernels: list[int], alpha: list[float], beta: list[float]
) -> None:
    """No item is lost or doubled, for any axes."""
    asked = request(images, kernels, alpha, beta)
    slices = plan(asked, 10_000)
    items = [item for each in slices for item in each]
    assert [asked.image_of(item.index) for item in items] == [item.image for item in items]
    assert [item.index for item in items] == list(range(len(items)))
    found = [(item.image, item.kernel, item.alpha, item.beta) for item in items]
    assert found == list(product(range(images), kernels, alpha, beta))
    assert all(len(each) == SLICE_ITEMS for each in slices[:-1])
    assert 1 <= len(slices[-1]) <= SLICE_ITEMS


def test_top_n_becomes_ranks() -> None:
    """The worker determines the kernels."""
    (items,) = plan(request(2, "top:3", [1], [1]), 100)
    assert [(item.image, item.kernel, item.rank) for item in items] == [
        (image, None, rank) for image in range(2) for rank in range(3)
    ]


def test_too_many_items_are_refused_before_they_are_made() -> None:
    """The error has the number of items."""
    with pytest.raises(InvalidRequest, match=r"32000 items.*at most 2048"):
        plan(request(16, "top:2000", [1], [1]), 2048)


def test_repeats_are_dropped() -> None:
    """Duplicate kernels and weights are merged."""
    assert request(1, [5, 5, 3], [1, 1.0], [0]).kernels == [5, 3]
    assert request(1, [5, 5, 3], [1, 1.0], [0]).alpha == [1.0]


def test_other_methods_have_no_alpha_and_beta_of_their_own() -> None:
    """Suppression runs with each α and β, a baseline once; the items of a kernel on an image are adjacent."""
    asked = request(2, [5], [1, 2], [1, 3])
    asked.methods = ["lrp", "suppression"]
    (items,) = plan(asked, 100)
    expected = [("lrp", 1, 1), *(("suppression", a, b) for a in (1, 2) for b in (1, 3))]
    assert variants(asked) == expected
    assert [(item.image, item.method, item.alpha, item.beta) for item in items] == [
        (image, *variant) for image in (0, 1) for variant in expected
    ]
