"""Surveys: how active kernels are on many images, against a plain loop over them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.readings import tensor
from shared.drawings import scene
from shared.tally import BINS, EDGES, TOP, Tally, joined
from tests.unit.test_networks import networks, whole
from worker.engine.survey import SILENT, survey, tallied
from worker.networks.layer import LoadedNetwork

COUNT = 37


@pytest.fixture(scope="module")
def mini() -> LoadedNetwork:
    """`vgg_mini`."""
    return networks(Path("/nonexistent")).get("vgg_mini")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Drawn scenes, two of them the same."""
    return tensor(*[np.asarray(scene(seed % 36, 96).image) for seed in range(COUNT)])


def test_a_survey_is_what_a_plain_loop_finds(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """Every number of every kernel of every layer."""
    found = survey(mini, list(mini.layers), pixels)
    assert list(found) == list(mini.layers)
    for name, tally in found.items():
        with torch.no_grad():
            maps = torch.cat([mini.layer(name).features(mini.space.from_bytes(one[None])) for one in pixels])
        assert (tally.images, tally.positions) == (COUNT, maps[0, 0].numel())
        for kernel in range(maps.shape[1]):
            _check(tally, kernel, maps[:, kernel].double().numpy())


def _check(tally: Tally, kernel: int, maps: np.ndarray) -> None:
    peaks = maps.max(axis=(1, 2))
    assert tally.mean[kernel] == pytest.approx(maps.mean(axis=(1, 2)).sum(), rel=1e-4, abs=1e-6)
    assert abs(tally.active[kernel] - (maps > 0).sum()) <= 1e-4 * maps.size  # a sum of nearly 0 may be either
    assert tally.active_images[kernel] == (peaks > 0).sum()
    highest = np.sort(peaks)[::-1][:TOP]
    assert tally.peaks[kernel] == pytest.approx(highest, rel=1e-4, abs=1e-5)
    assert len(set(tally.top[kernel].tolist())) == TOP
    for peak, image, place in zip(tally.peaks[kernel], tally.top[kernel], tally.places[kernel], strict=True):
        assert maps[image].flat[place] == pytest.approx(peak, rel=1e-4, abs=1e-5)
    assert tally.histogram[kernel].sum() == COUNT
    assert tally.histogram[kernel, 0] == (peaks <= 0).sum()
    strong = sum(np.histogram(peaks, [2.0, 4.0])[0])
    inner = tally.histogram[kernel, 2 + int(np.searchsorted(EDGES, 2.0)) : 2 + int(np.searchsorted(EDGES, 4.0))]
    assert abs(inner.sum() - strong) <= 1


def test_of_equal_images_the_first_comes_first(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """The first and the last are the same picture."""
    tally = survey(mini, ["conv2_2"], pixels)["conv2_2"]
    order = {(kernel, image): place for kernel, row in enumerate(tally.top.tolist()) for place, image in enumerate(row)}
    both = [kernel for kernel in range(len(tally.top)) if {(kernel, 0), (kernel, COUNT - 1)} <= order.keys()]
    assert both
    assert all(order[kernel, 0] < order[kernel, COUNT - 1] for kernel in both)
    assert all(high >= low for row in tally.peaks.tolist() for high, low in pairwise(row))


def test_parts_joined_are_the_whole(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """To the last bit, from files of them, and a part that is made again is the same part."""
    layer, cuts = "conv3_1", (0, 16, 32, COUNT)
    parts = [survey(mini, [layer], pixels[start:end], start)[layer] for start, end in pairwise(cuts)]
    again = survey(mini, [layer], pixels[16:32], 16)[layer]
    assert again.to_bytes() == parts[1].to_bytes()
    one = joined([Tally.from_bytes(part.to_bytes()) for part in parts])
    assert one.to_bytes() == survey(mini, [layer], pixels)[layer].to_bytes()


def test_fewer_images_than_are_kept(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """The places that are left are empty."""
    tally = survey(mini, ["conv1_1"], pixels[:3], 5)["conv1_1"]
    assert {*tally.top[:, :3].flat} == {5, 6, 7}
    assert (tally.top[:, 3:] == -1).all()
    assert np.isneginf(tally.peaks[:, 3:]).all()
    assert tally.histogram.shape == (len(tally.mean), BINS)


def test_of_maps_with_a_sign_the_absolute_value_counts() -> None:
    """And what is below a thousandth of the image's highest is silence."""
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = torch.tensor([[-4.0, 1.0], [0.5 * SILENT * 4, 0.0]])
    tally = tallied(maps, [9], signed=True)
    assert (tally.peaks[0, 0], tally.top[0, 0], tally.places[0, 0]) == (4.0, 9, 0)
    assert tally.active.tolist() == [2, 0]
    assert tally.mean[0] == pytest.approx((4 + 1 + 2 * SILENT) / 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny"])
def test_one_pass_gives_every_node_the_maps_of_its_own_cut(name: str, tmp_path: Path) -> None:
    """Additions, ReLU6, signs, channels that come last."""
    save_file(whole(name), tmp_path / f"{name}.safetensors")
    network = networks(tmp_path).get(name)
    names = [*network.layers, *network.nodes][::7]
    images = network.space.from_bytes(tensor(np.asarray(scene(3, network.frame.width).image)))
    found: dict[str, torch.Tensor] = {}
    network.each(names, images, found.__setitem__)
    assert found.keys() == set(names)
    for one in names:
        with torch.no_grad():
            alone = network.layer(one).features(images)
        assert found[one].shape == alone.shape, one
        torch.testing.assert_close(found[one], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()) + 1e-6)
