"""Registered networks: `networks.toml`, its errors, and the network's input as in training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import ModelUnavailable
from tests.unit.weights_files import networks
from worker.methods.suppression import PixelSpace
from worker.networks.definitions import FILE, checked, definitions, registered
from worker.networks.vgg_mini import WEIGHTS_FILE
from worker.networks.weights import file_error, refused

MINE = '[mine]\narch = "vgg_mini"\nweights = "mine.safetensors"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The weights folder, with the small network's weights under a neutral name."""
    shutil.copy(WEIGHTS_FILE, tmp_path / "mine.safetensors")
    return tmp_path


def write(folder: Path, text: str) -> None:
    """Write its `networks.toml`."""
    (folder / FILE).write_text(text)


def test_two_names_for_one_architecture(folder: Path) -> None:
    """Beside the bundled one; each reports its architecture and weights."""
    write(folder, MINE + MINE.replace("[mine]", '[other]\ntitle = "The other"'))
    source = networks(folder)
    state = source.states()["mine"]
    assert (state.available, state.source, len(state.layers)) == (True, "mine.safetensors", 8)
    assert [(one.name, one.title, one.architecture) for one in source.registered()] == [
        ("mine", "mine: VGG-mini: a small VGG trained on drawn shapes", "vgg_mini"),
        ("other", "The other", "vgg_mini"),
    ]
    found = {name: source.get(name) for name in ("vgg_mini", "mine", "other")}
    assert {one.weights.architecture for one in found.values()} == {"vgg_mini"}
    assert len({one.weights.sha256 for one in found.values()}) == 1
    assert found["mine"].layers["conv2_1"].below == found["vgg_mini"].layers["conv2_1"].below == ("conv1_1", "conv1_2")
    assert refused(folder) == {}
    assert not file_error(folder / "mine.safetensors")


def test_a_registered_file_is_of_one_network_only(folder: Path) -> None:
    """Although its name starts with an architecture's."""
    (folder / "mine.safetensors").rename(folder / "vgg_mini-mine.safetensors")
    write(folder, MINE.replace("mine.safe", "vgg_mini-mine.safe"))
    states = networks(folder).states()
    assert "bundled with Kernelscope" in states["vgg_mini"].reason
    assert states["mine"].source == "vgg_mini-mine.safetensors"


def test_what_is_loaded_never_changes_but_is_known_to_be_outdated(folder: Path) -> None:
    """A changed definition, a changed file; a network that is no longer registered is only removed."""
    write(folder, MINE)
    source = networks(folder)
    first = source.get("mine")
    assert source.outdated() == []
    write(folder, MINE + "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n")
    assert source.outdated() == ["mine"]
    assert source.get("mine") is first
    again = networks(folder)
    assert again.get("mine").weights.preprocessing != first.weights.preprocessing
    write(folder, "")
    assert again.outdated() == []
    assert "mine" not in again.states()
    write(folder, MINE)
    state = load_file(folder / "mine.safetensors")
    third = networks(folder)
    third.get("mine")
    file = folder / "mine.safetensors"
    os.utime(file, (1, 1))
    assert third.outdated() == []  # it is the same
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert third.outdated() == []  # it is being written: what can be had no more stays as it is
    file.unlink()
    assert third.outdated() == []
    save_file({key: 2 * tensor for key, tensor in state.items()}, file)
    assert third.outdated() == ["mine"]


def test_a_file_that_becomes_another_network_s(folder: Path) -> None:
    """A worker that has loaded it by its name restarts; an invalid table reserves the file nevertheless."""
    file = folder / "vgg_mini-birds.safetensors"
    (folder / "mine.safetensors").rename(file)
    source = networks(folder)
    assert source.get("vgg_mini").weights.source == file.name
    write(folder, '[birds]\narch = "vgg_mini"\nstd = [1, 1, 1]\nweights = "vgg_mini-birds.safetensors"\n')
    assert source.outdated() == ["vgg_mini"]
    assert networks(folder).get("vgg_mini").weights.source == WEIGHTS_FILE.name
    write(folder, "[birds")
    with pytest.raises(
        ModelUnavailable, match=r"is not valid TOML: .*; correct it first: it may define vgg_mini-birds"
    ):
        networks(folder).get("vgg_mini")


def test_torchvision_s_own_for_other_inputs_is_fed_so(tmp_path: Path) -> None:
    """Recognised by the hash in its name, also where it is registered."""
    torch.save({"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").rename(tmp_path / "vgg16_features-amdegroot-88682ab5.pth")
    write(tmp_path, '[ssd]\narch = "vgg16"\nweights = "vgg16_features-amdegroot-88682ab5.pth"\n')
    reported = networks(tmp_path).get("ssd").weights.preprocessing
    assert reported is not None
    assert reported.std == pytest.approx((1 / 255,) * 3)
    assert not reported.assumed


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("[mine", "is not valid TOML"),
        ('mine = "vgg16"', "[mine] write it as a table"),
        ('[vgg16]\narch = "vgg16"\nweights = "a.pth"', "[vgg16] this is the name of an architecture; choose another"),
        ('["My net"]\narch = "vgg16"\nweights = "a.pth"', "[My net] a name has lower-case letters"),
        ('[mine]\narch = "vgg99"\nweights = "a.pth"', "[mine] arch: there is no architecture vgg99; there are vgg11, "),
        ('[mine]\nweights = "a.pth"', "[mine] arch: Field required"),
        ('[mine]\narch = "vgg16"\nweights = "../a.pth"', "[mine] weights: give the name of a file in the weights"),
        (MINE + "mean = [1, 2, 3]", "[mine] mean and std belong together"),
        (MINE + "mean = [1, 2, 3]\nstd = [1, 1, 1]", "[mine] a mean outside 0 to 1 is one of pixels from 0 to 255"),
        (MINE + 'range = "0-255"\nmean = [1, 2, 300]\nstd = [1, 1, 1]', "[mine] each number of mean must be from 0 to"),
        (MINE + "mean = [0, 0, 0]\nstd = [1, 1e-60, 1]", "[mine] each number of std must be above zero"),
        ('[mine]\narch = "vgg16"\nweights = ".."', "[mine] weights: give the name of a file in the weights"),
        ("[mine]\nweights = " + "9" * 5000, "is not valid TOML"),
        (MINE + "mean = [1, 2]\nstd = [1, 1]", "[mine] mean and std have a number for each channel: 3; see channels"),
        (MINE + "mean = [1, 2, nan]\nstd = [1, 1, 1]", "[mine] mean.2: Input should be a finite number"),
        (MINE + "mean = [0, 0, 0]\nstd = [1, 0, 1]", "[mine] each number of std must be above zero"),
        (MINE + 'order = "bgr"', "[mine] a range or an order needs mean and std in its own terms"),
        (MINE + "range = 255", "[mine] range: Input should be '0-1' or '0-255'"),
        (
            MINE + "size = 96",
            "[mine] size: unknown; the fields are arch, weights, mean, std, range, order, channels, input_size, "
            "resize, title",
        ),
    ],
)
def test_invalid_definitions_are_reported(folder: Path, text: str, reported: str) -> None:
    """With each network, like a stray file; the other networks can be used."""
    write(
        folder,
        text
        + ("" if "is not valid TOML" in reported else '\n[good]\narch = "vgg_mini"\nweights = "mine.safetensors"\n'),
    )
    states = networks(folder).states()
    for name in ("vgg_mini", "vgg16"):
        (line,) = (line for line in states[name].refused if line.startswith(FILE))
        assert f"{FILE}: {reported}" in line
    assert "mine" not in states
    assert "is not valid TOML" in reported or states["good"].available


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (("mine.safe", "yours.safe"), "yours.safetensors: cannot be read (No such file or directory)"),
        (("vgg_mini", "vgg16"), "mine.safetensors: this file is vgg_mini's, not vgg16's"),
    ],
)
def test_a_file_that_is_not_what_was_registered(folder: Path, change: tuple[str, str], reported: str) -> None:
    """The name is unavailable with the reason; other weights are never used instead."""
    write(folder, MINE.replace(*change))
    source = networks(folder)
    assert reported in source.states()["mine"].reason
    with pytest.raises(ModelUnavailable, match="no weights for mine"):
        source.get("mine")


@pytest.mark.parametrize("inputs", ["0-255, as they are", "0-255, divided", "0-1", "0-1, small"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_twin_that_was_trained_on_other_inputs_has_the_same_maps(folder: Path, order: str, inputs: str) -> None:
    """To 1e-4: the same network, whose first convolution expects such inputs. Its pixel space is the usual one."""
    most, std = {
        "0-255, as they are": (255.0, (1.0, 1.0, 1.0)),
        "0-255, divided": (255.0, (58.4, 57.1, 57.4)),
        "0-1": (1.0, (0.5, 0.25, 0.3)),
        "0-1, small": (1.0, (0.0039, 0.004, 0.0038)),
    }[inputs]
    original = networks(folder).get("vgg_mini")
    space, state = original.space, load_file(WEIGHTS_FILE)
    mean = tuple(most * one for one in space.mean.flatten().tolist())
    given = {name: values if order == "rgb" else values[::-1] for name, values in (("mean", mean), ("std", std))}
    first = state["features.0.weight"] * (torch.tensor(std) / most / space.std.flatten())[None, :, None, None]
    state["features.0.weight"] = (first if order == "rgb" else first.flip(1)).contiguous()
    save_file(state, folder / "twin.safetensors")
    write(
        folder,
        f'[twin]\narch = "vgg_mini"\nweights = "twin.safetensors"\nrange = "0-{most:.0f}"\norder = "{order}"\n'
        f"mean = {list(given['mean'])}\nstd = {list(given['std'])}\n",
    )
    twin = networks(folder).get("twin")
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for layer in ("conv1_1", "conv3_1"):
        theirs = original.layers[layer].features(space.from_bytes(pixels))
        ours = twin.layers[layer].features(twin.space.from_bytes(pixels))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert 0.2 < float(twin.space.std.min()) < 0.3  # not 1/255
    assert torch.equal(twin.space.to_bytes(twin.space.from_bytes(pixels)), pixels)


@pytest.mark.parametrize(
    ("file", "metadata", "assumed"),
    [
        ("vgg11-mine.safetensors", None, True),
        ("vgg11-mine.safetensors", {"normalization_mean": "0.5,0.5,0.5", "normalization_std": "0.5,0.5,0.5"}, False),
        ("vgg11-mine.safetensors", {"normalization_mean": "0.5,0.5,0.5"}, True),
    ],
)
def test_what_is_assumed_is_reported(tmp_path: Path, file: str, metadata: Any, assumed: bool) -> None:  # noqa: FBT001
    """If neither the file nor the definition has a preprocessing; before and after loading."""
    first = {"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}
    save_file(first, tmp_path / file, metadata)
    source = networks(tmp_path)
    before = source.states()["vgg11"].preprocessing
    assert before is not None
    assert before.assumed is assumed
    assert source.get("vgg11").weights.preprocessing == before


def test_torchvision_s_own_is_known(tmp_path: Path) -> None:
    """By the hash in its file's name."""
    torch.save({"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").rename(tmp_path / "vgg11-8a719046.pth")
    reported = networks(tmp_path).states()["vgg11"].preprocessing
    assert reported is not None
    assert not reported.assumed


def test_the_catalogue_s_entry_is_the_architecture_s(folder: Path) -> None:
    """With the layers that it can have."""
    write(folder, MINE)
    (definition,) = definitions(folder).networks.values()
    assert [layer.name for layer in registered("mine", definition).layers][:2] == ["conv1_1", "conv1_2"]
    assert isinstance(networks(folder).get("mine").space, PixelSpace)


def test_a_definition_may_give_the_input_s_size() -> None:
    """Its layers are described for that size; one that is too small or invalid is refused."""
    table = {"arch": "squeezenet1_1", "weights": "a.pth"}
    assert checked("mine", {**table, "input_size": 96, "resize": "crop"}).input_size == 96
    for size, words in (
        (8, "32"),
        (5000, "1024"),
        ("large", "height and width"),
        ([96, 97, 98], "height and width"),
        (True, "height and width"),
    ):
        with pytest.raises(ValueError, match=words):
            checked("mine", {**table, "input_size": size})
    with pytest.raises(ValueError, match="cannot process images of 40 × 40"):
        checked("mine", {**table, "arch": "inception_v3", "input_size": 40})
