"""Networks with grey or non-square input: preprocessing, explanations and figures."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from api.pictures.figures import draw
from kernelscope.client.pictures import file_of
from shared.drawings import scene
from shared.errors import ModelUnavailable
from shared.images import Frame, array, decoded, pictured, resized
from shared.jobs import DRAWN_ARTIFACTS
from tests.unit.test_figures import evidence
from worker.engine.device import TorchDevice
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Picture, Question
from worker.jobs.activations import measured
from worker.jobs.artifacts import artifacts, encoded
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.checkpoints import ExpectedNetwork, inspect
from worker.networks.contents import Refused
from worker.networks.definitions import FILE, checked, registered
from worker.networks.loaded import Networks
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini

FRAME = Frame(96, 128, 1)
TABLE = {"arch": "vgg_mini", "weights": "grey.safetensors", "mean": 0.5, "std": [0.25], "channels": 1}
TOML = (
    '[grey]\narch = "vgg_mini"\nweights = "grey.safetensors"\nmean = 0.5\nstd = 0.25\nchannels = 1\ninput_size = %s\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a grey twin of `vgg_mini`, which has the same maps for an image without colours."""
    state = load_file(WEIGHTS_FILE)
    state["features.0.weight"] = state["features.0.weight"].sum(1, keepdim=True)
    save_file(state, tmp_path / "grey.safetensors")
    return tmp_path


def device(folder: Path, size: str = "[96, 128]") -> TorchDevice:
    """The networks of the folder, with the registered twin."""
    (folder / FILE).write_text(TOML % size)
    return TorchDevice(Networks(folder, torch.device("cpu"), download=False))


def deep(width: int = 128, height: int = 96) -> Picture:
    """A photograph in 16-bit grey, as network input."""
    wide = np.asarray(scene(5, 256).image.convert("L")).astype(np.uint32) * 257
    wide = (wide + np.arange(256)).clip(0, 65535).astype(np.uint16)  # values that 8 bits do not have
    file = BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    seen = decoded(file.getvalue(), 10**8, deep=True)
    assert (seen.image.mode, seen.notes) == ("F", [])
    return array(resized(seen.image, Frame(height, width, 1)))


def test_its_maps_are_those_of_its_twin(folder: Path) -> None:
    """To 1e-4, on an 8-bit grey image; and in another shape those of a plain run of the module."""
    grey = scene(5, 96).image.convert("L")
    small, mini = device(folder, "96"), TorchDevice(Networks(folder, torch.device("cpu"), download=False))
    one = small.feature_maps("grey", "conv3_2", array(resized(grey, small.frame("grey"))))
    three = mini.feature_maps("vgg_mini", "conv3_2", array(resized(grey.convert("RGB"), mini.frame("vgg_mini"))))
    assert np.abs(one - three).max() <= 1e-4 * np.abs(three).max()
    wide = device(folder)
    assert wide.frame("grey") == FRAME
    module, picture = VggMini(), deep()
    module.load_state_dict(load_file(WEIGHTS_FILE))
    values = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        plain = module.features[:4](((values - 0.5) / 0.25).expand(-1, 3, -1, -1))
    found = torch.from_numpy(wide.feature_maps("grey", "conv1_2", picture))
    assert found.shape == (plain.shape[1], 96, 128)
    assert float((found - functional.relu(plain[0])).abs().max()) <= 1e-4 * float(plain.abs().max())


@pytest.mark.parametrize("method", ["suppression", "evidence", "lrp"])
def test_it_is_explained_in_grey(folder: Path, method: str) -> None:
    """X̂ has its shape and a lower loss than the image and the blank picture; all figures can be drawn."""
    engine, picture = Engine(device(folder)), deep()
    kernel = engine.call(engine.device.ranking, "grey", "conv2_2", picture)[0]
    question = Question("grey", "conv2_2", picture, kernel, 1.0, 1.0, "fast", "quick", 40, method=method)
    ((_, answer),) = engine.ask([question])
    engine.close()
    assert isinstance(answer, Answer), answer
    assert answer.picture.shape == (96, 128, 1)
    assert answer.picture.dtype == np.uint8
    assert answer.x.shape == (1, 96, 128)
    assert answer.maps["before"].shape == (48, 64)
    if method != "lrp":
        assert answer.losses.total < min(answer.loss_start, answer.loss_blank)
    assert answer.weights.preprocessing
    assert str(answer.weights.preprocessing) == "GREY from 0 to 1, mean 0.5, std 0.25"
    files = artifacts(answer, encoded(picture))
    sent, made = (Image.open(BytesIO(files[name])) for name in ("original.png", "optimized.png"))
    assert (sent.mode, made.mode, sent.size, made.size) == ("I;16", "L", (128, 96), (128, 96))
    maps = np.load(BytesIO(files["maps.npz"]))
    shown = replace(
        evidence(),
        picture={"original.png": sent.convert("RGB"), "optimized.png": made.convert("RGB")}.__getitem__,
        arrays={"maps.npz": dict(maps), "optimized.npy": {"x": answer.x}}.__getitem__,
    )
    for name in DRAWN_ARTIFACTS:
        assert min(Image.open(BytesIO(draw(name, shown))).size) >= 96, name


def test_its_thumbnails_keep_their_shape(folder: Path) -> None:
    """Averaged over squares, in a square tile."""
    facts, files = measured(device(folder).feature_maps("grey", "conv1_1", deep()))
    assert np.load(BytesIO(files["activations.npz"]))["thumbnails"].shape[1:] == (32, 42)
    assert facts["thumbnails"].tile == 56


def test_more_than_8_bits_reach_the_network(folder: Path) -> None:
    """Two images that are equal in 8 bits have different maps; a PNG contains all values of the input."""
    picture = deep()
    assert not np.array_equal(picture, picture.round())
    found = device(folder)
    fine, coarse = (found.feature_maps("grey", "conv1_1", each) for each in (picture, picture.astype(np.uint8)))
    assert not np.array_equal(fine, coarse)
    kept = decoded(encoded(picture), 10**8, deep=True)
    assert np.array_equal(array(kept.image), picture)


def test_colours_become_luma_and_shapes_are_cut_out_of_the_middle() -> None:
    """The tall middle of a wide picture."""
    image = Image.new("RGB", (300, 100), "black")
    image.paste((200, 100, 50), (125, 0, 175, 100))
    shown = array(resized(image, Frame(60, 30, 1), "crop"))
    assert shown.shape == (60, 30, 1)
    assert set(np.unique(shown).tolist()) == {round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)}
    assert pictured(shown).mode == "L"


def test_the_middle_of_a_small_image_is_never_nothing() -> None:
    """Although the frame is 32 times as long as wide."""
    for mode in ("RGB", "L", "F"):
        shown = array(resized(Image.new(mode, (8, 16), 255 if mode != "RGB" else "white"), Frame(32, 1024), "crop"))
        assert shown.min() == 255


def test_the_client_sends_all_16_bits() -> None:
    """A Pillow image as a file."""
    file = BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 15).save(file, "PNG")
    _, sent = file_of(Image.open(file))
    one, other = (array(decoded(data, 10**8, deep=True).image) for data in (file.getvalue(), sent))
    assert np.array_equal(one, other)
    assert len(np.unique(one)) == 4096


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ({"mean": None, "std": None}, "needs mean and std"),
        ({"mean": [0.5] * 3, "std": [0.25] * 3}, "a number for each channel: 1"),
        ({"channels": 3}, "a number for each channel: 3"),
        ({"order": "bgr"}, "one channel has no order"),
        ({"channels": 2}, "channels: Input should be 1 or 3"),
        ({"input_size": [8, 96]}, "each from 32 to 1024"),
        ({"input_size": "96x"}, "each from 32 to 1024"),
        ({"input_size": 96.5}, "each from 32 to 1024"),
        ({"input_size": "9" * 5000}, "each from 32 to 1024"),
    ],
)
def test_invalid_definitions_are_refused(reported: dict[str, object], words: str) -> None:
    """With the reason; the command line's form of a size is accepted."""
    assert checked("grey", {**TABLE, "input_size": "96x128"}).input == FRAME
    assert checked("grey", {**TABLE, "input_size": 224.0}).input_size == 224
    with pytest.raises(ValueError, match=words):
        checked("grey", {name: one for name, one in {**TABLE, **reported}.items() if one is not None})


def test_a_file_of_other_channels_is_refused(folder: Path) -> None:
    """In either direction, with the correction."""
    with pytest.raises(Refused, match=r"takes 1 channel, not 3; register it with channels = 1$"):
        inspect(folder / "grey.safetensors", ExpectedNetwork("vgg_mini"))
    with pytest.raises(Refused, match=r"takes 3 channels, not 1; register it with channels = 3$"):
        inspect(WEIGHTS_FILE, ExpectedNetwork("vgg_mini", 1))
    (folder / "grey.safetensors").rename(folder / "vgg_mini-grey.safetensors")
    with pytest.raises(ModelUnavailable, match="register it with channels = 1"):
        Networks(folder, torch.device("cpu"), download=False).get("vgg_mini")


def test_it_is_described(folder: Path) -> None:
    """One number for a square; otherwise height first."""
    wide = registered("grey", checked("grey", {**TABLE, "input_size": [96, 128]}))
    assert (wide.input_size, wide.channels, wide.frame) == ((96, 128), 1, FRAME)
    assert (wide.layer("conv4_2").height, wide.layer("conv4_2").width) == (12, 16)
    square = registered("grey", checked("grey", {**TABLE, "input_size": [96, 96]}))
    assert (square.input_size, square.frame) == (96, Frame(96, 96, 1))


@pytest.mark.parametrize(
    "name", ["alexnet", "densenet121", "googlenet", "mobilenet_v3_small", "convnext_tiny", "regnet_x_400mf"]
)
def test_any_network_can_see_grey(name: str) -> None:
    """Only the convolutions that are applied to the pixels have another shape."""
    usual = ARCHITECTURES[name].frame
    own, grey = layers_of(name), layers_of(name, usual._replace(height=usual.height + 32, channels=1))
    before, after = (one.graph.network.state_dict() for one in (own, grey))
    other = {key for key in before if before[key].shape != after[key].shape}
    assert other == set(own.graph.first) == set(grey.graph.first)
    assert list(own.layers) == list(grey.layers)
