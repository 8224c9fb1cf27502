"""Weights files are read in both of torch's formats, and what is no weights is refused."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shared.errors import ModelUnavailable
from tests.unit.weights_files import PUBLISHED, broken, networks, parameters, put, refuses, whole
from worker.networks import checkpoints, contents
from worker.networks.architectures import layers_of
from worker.networks.contents import Refused
from worker.networks.weights import file_error


def test_the_old_format_is_read_from_the_folder_and_from_the_cache(folder: Path, cache: Path) -> None:
    """Like torchvision's own vgg16-397923af.pth; the state says the same before and after loading."""
    known = layers_of("squeezenet1_1").layers
    layers = [name for name, node in known.items() if node.main]
    for place, reason in ((cache, "from torch's cache"), (folder, "in the weights folder")):
        put(place / PUBLISHED, "squeezenet1_1", old=True)
        source = networks(folder)
        for _ in range(2):
            state = source.states()["squeezenet1_1"]
            assert (state.available, state.layers) == (True, layers)
            assert reason in state.reason
            assert list(source.get("squeezenet1_1").layers) == layers
    assert file_error(folder / PUBLISHED).startswith("it is not the file that its name says")  # but it is whole


def pickled(file: Path) -> None:
    """A whole module."""
    torch.save(nn.Linear(2, 2), file)


def pickled_as_long_ago(file: Path) -> None:
    """A whole module in torch's old format."""
    torch.save(nn.Linear(2, 2), file, _use_new_zipfile_serialization=False)


def compiled(file: Path) -> None:
    """A TorchScript program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us export it
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(file))


@pytest.mark.parametrize("write", [pickled, pickled_as_long_ago, compiled])
def test_files_are_read_without_running_code(folder: Path, write: Callable[[Path], None]) -> None:
    """What is more than tensors is refused, with what to do instead."""
    write(folder / "vgg11.pt")
    refuses(
        folder,
        "vgg11",
        "vgg11.pt",
        "damaged, or more than named tensors",
        "a whole pickled model",
        "torch.save(model.state_dict(), file)",
    )


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (broken(features__0__weight="none"), "features.0.weight is no dense tensor of floating-point numbers"),
        (
            broken(features__0__weight=torch.zeros(64, 3, 3, 3, dtype=torch.int8)),
            "features.0.weight is no dense tensor",
        ),
        pytest.param(
            broken(features__0__bias=torch.zeros(64).to_sparse()),
            "features.0.bias is no dense tensor",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
        ),
        (broken(features__0__bias=torch.full((64,), torch.nan)), "features.0.bias holds NaN or infinity"),
        (
            broken(features__0__bias=torch.full((64,), 1e300, dtype=torch.double)),
            "features.0.bias holds NaN or infinity",
        ),
        (broken(features__0__bias=torch.zeros(3)), "does not fit vgg11: features.0.bias is 3, not 64"),
        (broken(features__99__bias=torch.zeros(3)), "does not fit vgg11, which has no features.99.bias"),
        ({"features.0.bias": torch.zeros(64)}, "does not hold every parameter of conv1_1"),
        ({"weights": broken(), "epoch": 3}, "holds no parameters of vgg11 by torchvision's names"),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "such as features.0.weight, but epoch, optimizer"),
        ({"model": broken(), "ema": broken()}, "holds parameters of vgg11 more than once, `model` and `ema`"),
        (
            {**broken(), "module.features.0.bias": torch.zeros(64)},
            "holds features.0.bias twice, as features.0.bias and as module.features.0.bias",
        ),
        ([1, 2], "but nothing"),
    ],
)
def test_contents_that_are_no_weights_make_the_model_unavailable(folder: Path, state: Any, text: str) -> None:
    """With a sentence, and without an error that a worker does not catch."""
    torch.save(state, folder / "vgg11.pth")
    source = networks(folder)
    source.states()
    with pytest.raises(ModelUnavailable, match="no weights for vgg11: ") as error:
        source.get("vgg11")
    assert text in error.value.detail
    assert text in source.states()["vgg11"].reason
    assert text in file_error(folder / "vgg11.pth")


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "backbone.", "_orig_mod.", "model._orig_mod.module."]
)
@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("ema", "state_dict")])
def test_parameters_are_found_as_training_programs_save_them(
    folder: Path, prefix: str, nested: tuple[str, ...]
) -> None:
    """With prefixes, nested, in half precision, beside classifiers and counters of all kinds."""
    own = {f"{prefix}{key}": tensor.to(torch.bfloat16) for key, tensor in parameters("vgg11", until=0).items()}
    state: Any = {**own, f"{prefix}head.weight": torch.zeros(2), "loss.scale": torch.zeros(1)}
    for name in nested:
        state = {name: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(state, folder / "vgg11.pth")
    network = networks(folder).get("vgg11")
    assert list(network.layers) == ["conv1_1"]
    assert network.layers["conv1_1"].cut(torch.zeros(1, 3, 8, 8)).dtype is torch.float32


def test_torchvision_s_own_file_is_read(folder: Path) -> None:
    """In torch's present format; the weights are known by its SHA-256."""
    torch.save(whole("alexnet"), folder / "alexnet-owt-7be5be79.pth")
    network = networks(folder).get("alexnet")
    assert list(network.layers) == [f"conv{number}" for number in range(1, 6)]
    data = (folder / "alexnet-owt-7be5be79.pth").read_bytes()
    assert network.weights.sha256 == hashlib.sha256(data).hexdigest()


def test_what_cannot_be_read(folder: Path) -> None:
    """A broken link, and a path that is no folder: unavailable, and the heartbeat continues."""
    (folder / "vgg11.pth").symlink_to("/nowhere/vgg11.pth")
    refuses(folder, "vgg11", "vgg11.pth", "No such file")
    state = networks(folder / "vgg11.pth" / "none").states()["vgg_mini"]
    assert state.available
    (folder / "file").write_text("")
    state = networks(folder / "file").states()["vgg_mini"]
    assert not state.available
    assert "file cannot be read (Not a directory)" in state.reason


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_written_to_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """No mixture of the old and the new file; once it is complete it is used."""
    file = folder / f"vgg11.{suffix}"
    state = {key: tensor.contiguous() for key, tensor in parameters("vgg11", until=0).items()}

    def write(state: dict[str, Any]) -> None:
        save_file(state, file) if suffix == "safetensors" else torch.save(state, file)

    write(state)
    original = contents.contents_of

    def beside_a_writer(file: Path, device: str) -> contents.FileContents:
        found = original(file, device)
        file.write_bytes(file.read_bytes()[:100])
        return found

    monkeypatch.setattr(checkpoints, "contents_of", beside_a_writer)
    with pytest.raises(Refused, match="written to while it was read"):
        checkpoints.read(file)
    monkeypatch.setattr(checkpoints, "contents_of", original)
    with pytest.raises(Refused, match="damaged"):
        checkpoints.read(file)
    write(state)
    assert checkpoints.read(file).layers == ["conv1_1"]
