"""Surveys: how active kernels are on many images, against a plain loop."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.readings import tensor
from shared.drawings import scene
from shared.errors import DeviceOutOfMemory
from shared.surveys.parts import Part, Seen, Whole, join, packed
from shared.surveys.tally import BINS, TOP, Tally, bins_of
from tests.unit.weights_files import networks, whole
from worker.engine.device import TorchDevice
from worker.engine.survey import SILENT, seen, survey
from worker.networks.layer import LoadedNetwork

COUNT = 37


@pytest.fixture(scope="module")
def mini() -> LoadedNetwork:
    """The network `vgg_mini`."""
    return networks(Path("/nonexistent")).get("vgg_mini")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Drawn scenes, two of them equal."""
    return tensor(*[np.asarray(scene(seed % 36, 96).image) for seed in range(COUNT)])


def parts(network: LoadedNetwork, layers: list[str], pixels: torch.Tensor, first: int = 0) -> dict[str, Part]:
    """Parts as a worker creates them."""
    return {name: Part.of([maps], first) for name, maps in survey(network, layers, pixels).items()}


def test_a_survey_is_what_a_plain_loop_finds(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """All numbers of all kernels of all layers."""
    found = survey(mini, list(mini.layers), pixels)
    assert list(found) == list(mini.layers)
    for name, tally in ((name, Part.of([maps], 0).tally) for name, maps in found.items()):
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
    highest = np.sort(peaks[peaks > 0])[::-1][:TOP]
    there = len(highest)
    assert tally.peaks[kernel, :there] == pytest.approx(highest, rel=1e-4, abs=1e-5)
    assert len(set(tally.top[kernel, :there].tolist())) == there
    assert (tally.top[kernel, there:] == -1).all()
    for peak, image, place in zip(highest, tally.top[kernel, :there], tally.places[kernel, :there], strict=True):
        assert maps[image].flat[place] == pytest.approx(peak, rel=1e-4, abs=1e-5)
    assert tally.histogram[kernel].sum() == tally.images
    assert tally.histogram[kernel, 0] == (peaks <= 0).sum()


def test_the_histogram_is_in_quarter_octaves() -> None:
    """Inactive images have a bin of their own; values beyond the others are in the outer bins."""
    peaks = np.array([0.0, 1e-9, 0.99, 1.0, 1.18, 1.19, 1e9], np.float32)
    assert [*np.diff(bins_of(peaks))[2:5]] == [1, 0, 1]
    assert [bins_of(peaks)[at] for at in (0, 1, 6)] == [0, 1, BINS - 1]


def test_of_equal_peaks_the_image_that_comes_first_is_named_first() -> None:
    """Within a part and across parts; a kernel that is silent on an image is not listed with it."""
    maps = torch.ones(3, 1, 2, 2)
    maps[1] = 0
    part, later = (Part.of([seen(maps)], first) for first in (4, 7))
    assert part.tally.top[0, :3].tolist() == [4, 6, -1]
    assert (part.tally + later.tally).top[0, :5].tolist() == [4, 6, 7, 9, -1]
    assert (part.tally.active_images[0], part.tally.histogram[0, 0]) == (2, 1)


def test_what_is_no_number_or_of_another_layer_is_refused() -> None:
    """There is no summary then."""
    with pytest.raises(ValueError, match="finite"):
        Part.of([seen(torch.full((1, 1, 2, 2), float("nan")))], 0)
    with pytest.raises(ValueError, match="shapes"):
        _ = Part.of([seen(torch.ones(1, 1, 2, 2))], 0).tally + Part.of([seen(torch.ones(1, 1, 3, 3))], 1).tally


def test_parts_joined_are_the_whole(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """From files of the parts; a part that is computed again is the same to the last bit."""
    layers, cuts = ["conv3_1", "conv1_1"], (0, 16, 32, COUNT)
    files = [packed(parts(mini, layers, pixels[start:end], start)) for start, end in pairwise(cuts)]
    assert packed(parts(mini, layers, pixels[16:32], 16)) == files[1]
    put_together, at_once = join(files, layers), parts(mini, layers, pixels)
    for layer in layers:
        found, expected = put_together[layer].tally.arrays(), at_once[layer].tally.arrays()
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-12, err_msg=name)
        again = Whole.from_bytes(put_together[layer].to_bytes())
        np.testing.assert_array_equal(again.alike, put_together[layer].alike)
        _check_alike(again, at_once[layer].peaks)


def _check_alike(found: Whole, peaks: np.ndarray) -> None:
    """Pearson's correlation as in numpy; none with a constant kernel, nor with itself."""
    changes = peaks.std(axis=0) > 0
    for kernel, (others, values) in enumerate(zip(found.alike, found.correlations, strict=True)):
        expected = [
            np.corrcoef(peaks[:, kernel], peaks[:, other])[0, 1] if changes[kernel] and changes[other] else -np.inf
            for other in others
        ]
        assert values == pytest.approx(expected, abs=0.005)  # of peaks in half precision
        assert kernel not in others[np.isfinite(values)]
        assert (np.diff(values[np.isfinite(values)]) <= 0).all()


def test_fewer_images_than_are_kept(mini: LoadedNetwork, pixels: torch.Tensor) -> None:
    """The remaining places are empty."""
    tally = parts(mini, ["conv1_1"], pixels[:3], 5)["conv1_1"].tally
    assert {*tally.top[:, :3].flat} == {5, 6, 7}
    assert (tally.top[:, 3:] == -1).all()
    assert np.isneginf(tally.peaks[:, 3:]).all()
    assert tally.histogram.shape == (len(tally.mean), BINS)


def test_of_maps_with_a_sign_the_absolute_value_counts() -> None:
    """Values up to a thousandth of the image's highest are inactive."""
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = torch.tensor([[-4.0, 1.0], [0.5 * SILENT * 4, 0.0]])
    tally = Part.of([seen(maps, signed=True)], 9).tally
    assert (tally.peaks[0, 0], tally.top[0, 0], tally.places[0, 0]) == (4.0, 9, 0)
    assert tally.active.tolist() == [2, 0]
    assert tally.mean[0] == pytest.approx((4 + 1 + 2 * SILENT) / 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny"])
def test_one_pass_gives_every_node_the_maps_of_its_own_cut(name: str, tmp_path: Path) -> None:
    """Additions, ReLU6, signs, channels-last layers."""
    save_file(whole(name), tmp_path / f"{name}.safetensors")
    network = networks(tmp_path).get(name)
    names = [*network.layers, *network.nodes][::7]
    pixels = tensor(*[np.asarray(scene(seed, network.frame.width).image) for seed in range(3)])
    images = network.space.from_bytes(pixels)
    found: dict[str, torch.Tensor] = {}
    network.each(names, images, found.__setitem__)
    assert found.keys() == set(names)
    for one in names:
        with torch.no_grad():
            alone = network.layer(one).features(images)
        assert found[one].shape == alone.shape, one
        torch.testing.assert_close(found[one], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()) + 1e-6)
        assert (one in network.signed) == network.layer(one).signed
    signed = next((one for one in names if one in network.signed), names[0])
    tally, maps = parts(network, [signed], pixels)[signed].tally, found[signed].abs()
    assert tally.mean == pytest.approx(maps.double().mean(dim=(2, 3)).sum(dim=0).numpy(), rel=1e-3)


def test_what_is_above_the_last_layer_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survey of a low layer costs as much as that layer."""
    save_file(whole("resnet18"), tmp_path / "resnet18.safetensors")
    network = networks(tmp_path).get("resnet18")
    ran: list[torch.Size] = []
    run = torch.nn.Conv2d.forward

    def counted(own: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        ran.append(images.shape)
        return run(own, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    pixels = tensor(np.asarray(scene(1, network.frame.width).image))
    survey(network, ["layer1.0.relu_1"], pixels)
    assert len(ran) == 3


def test_where_memory_runs_out_images_are_halved(
    mini: LoadedNetwork, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to a single image, with the same numbers; an image that does not fit alone is an error."""
    device = TorchDevice(networks(Path("/nonexistent")))
    pictures, asked, most = [image.permute(1, 2, 0).numpy() for image in pixels[:5]], list[int](), 2

    def small(network: LoadedNetwork, layers: list[str], some: torch.Tensor) -> dict[str, Seen]:
        asked.append(len(some))
        if len(some) > most:
            raise torch.OutOfMemoryError
        return survey(network, layers, some)

    monkeypatch.setattr("worker.engine.device.survey", small)
    found = device.survey("vgg_mini", ["conv2_1"], pictures)["conv2_1"]
    assert asked == [5, 2, 3, 1, 2]
    expected = survey(mini, ["conv2_1"], pixels[:5])["conv2_1"]
    np.testing.assert_allclose(found.peaks, expected.peaks, rtol=1e-5)
    np.testing.assert_array_equal(found.places, expected.places)
    most = 0
    with pytest.raises(DeviceOutOfMemory, match="vgg_mini"):
        device.survey("vgg_mini", ["conv2_1"], pictures)
