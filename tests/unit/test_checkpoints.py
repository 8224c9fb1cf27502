"""Weights files: both of torch's formats are read, and files that do not match their names are refused."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.errors import ModelUnavailable
from shared.schemas import Preprocessing
from worker.networks import checkpoints, contents
from worker.networks import loaded as networks_module
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.contents import Refused
from worker.networks.loaded import Networks
from worker.networks.weights import file_error, find, load, refused

CPU = torch.device("cpu")
PUBLISHED = "squeezenet1_1-b8a52dc0.pth"  # torchvision's
AMDEGROOT = "vgg16_features-amdegroot-88682ab5.pth"  # torchvision's too, for inputs from 0 to 255


def parameters(name: str, *, until: int = 100) -> dict[str, Tensor]:
    """A state dict of the modules up to this index with values 0, each stored as one number in a .pth."""
    return {
        key: torch.zeros((), dtype=meta.dtype).expand(meta.shape)
        for key, meta in ARCHITECTURES[name].module().state_dict().items()
        if key.startswith("features.") and int(key.split(".")[1]) <= until
    }


def put(file: Path, name: str, *, until: int = 100, old: bool = False) -> None:
    """Write a network's parameters as a .pth."""
    torch.save(parameters(name, until=until), file, _use_new_zipfile_serialization=not old)


def networks(folder: Path, *, download: bool = False) -> Networks:
    """The networks of that folder."""
    return Networks(folder, CPU, download=download)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The weights folder, empty."""
    path = tmp_path / "weights"
    path.mkdir()
    return path


def refuses(folder: Path, name: str, file: str, *texts: str) -> None:
    """The network is unavailable because of this file with these words: to a job, in `GET /models`, in the doctor."""
    source = networks(folder, download=True)
    state = source.states()[name]
    with pytest.raises(ModelUnavailable) as error:
        source.get(name)
    assert not state.available
    for shown in (state.reason, error.value.detail, f"{file}: {file_error(folder / file)}", *state.refused):
        assert f"{file}: " in shown
        assert all(text in shown for text in texts), shown


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


def test_the_old_format_is_read_without_running_code(folder: Path) -> None:
    """A whole module is refused, with what to do instead."""
    torch.save(nn.Linear(2, 2), folder / "vgg11.pth", _use_new_zipfile_serialization=False)
    refuses(folder, "vgg11", "vgg11.pth", "a whole pickled model", "torch.save(model.state_dict(), file)")


def test_a_file_that_does_not_change_is_looked_into_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read for every heartbeat, even if damaged; a replaced file is inspected again."""
    seen: list[str] = []
    original = torch.load

    def counted(file: Path, **options: Any) -> Any:
        seen.append(file.name)
        return original(file, **options)

    monkeypatch.setattr(torch, "load", counted)
    put(folder / "vgg11.pth", "vgg11", old=True)
    (folder / "vgg13.pth").write_bytes(b"\x00" * 100)
    source = networks(folder)
    for _ in range(3):
        source.states()
    assert sorted(seen) == ["vgg11.pth", "vgg13.pth"]
    put(folder / "vgg13.pth", "vgg13", old=True)
    assert source.states()["vgg13"].available
    assert sorted(seen) == ["vgg11.pth", "vgg13.pth", "vgg13.pth"]


@pytest.mark.parametrize(
    ("file", "name", "right"),
    [
        ("squeezenet1_1_finetuned.pth", "squeezenet1_1", "squeezenet1_1-finetuned.pth"),
        ("vgg16_birds.safetensors", "vgg16", "vgg16-birds.safetensors"),
        ("vgg16_bn_x.pth", "vgg16_bn", "vgg16_bn-x.pth"),
        ("VGG16.pt", "vgg16", "vgg16.pt"),
        ("vgg_mini2.pth", "vgg_mini", "vgg_mini-2.pth"),
    ],
)
def test_a_file_named_for_no_network_is_refused_by_name(
    folder: Path, cache: Path, file: str, name: str, right: str
) -> None:
    """Its network is not explained with torchvision's or the bundled weights instead; other networks are."""
    put(cache / PUBLISHED, "squeezenet1_1")
    (folder / file).write_bytes(b"")
    refuses(folder, name, file, "no network has this name", f"name it {right} to use it as {name}")
    states = networks(folder, download=True).states()
    assert [other for other, state in states.items() if not state.available] == [name]
    assert [other for other, state in states.items() if state.refused] == [name]


def test_a_file_that_can_be_used_is_used_beside_one_that_cannot(folder: Path) -> None:
    """The refusal is reported nevertheless."""
    put(folder / "vgg11.pth", "vgg11")
    put(folder / "vgg11-wrong.pth", "vgg13")
    (folder / "vgg11_stray.pth").write_bytes(b"")
    source = networks(folder)
    for _ in range(2):
        state = source.states()["vgg11"]
        assert (state.available, state.source) == (True, "vgg11.pth")
        assert [line.split(": ")[0] for line in state.refused] == ["vgg11-wrong.pth", "vgg11_stray.pth"]
        source.get("vgg11")


def test_a_file_of_no_network_is_reported_with_each(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It could be meant for any network; it is logged once. Hidden files, folders and others are ignored."""
    (folder / "mine.safetensors").write_bytes(b"")
    (folder / "._vgg16.pth").write_bytes(b"")
    (folder / "vgg16_notes.txt").write_text("")
    (folder / "vgg16_old.pt").mkdir()
    source = networks(folder, download=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            states = source.states()
    assert all(state.available for state in states.values())
    shown = {line for state in states.values() for line in state.refused}
    assert len(shown) == 1
    assert all(shown == set(state.refused) for state in states.values())
    assert shown.pop().startswith("mine.safetensors: no network has this name; it should begin with one of vgg11, ")
    (record,) = caplog.records
    assert "mine.safetensors is not used: no network has this name" in record.getMessage()


@pytest.mark.parametrize("file", [AMDEGROOT, "vgg16-features-88682ab5.pth"])
def test_torchvision_s_weights_for_other_inputs_are_refused(folder: Path, file: str) -> None:
    """They do not have ImageNet's normalisation, also under another name; a safetensors file can contain theirs."""
    put(folder / file, "vgg16")
    refuses(folder, "vgg16", file, "IMAGENET1K_FEATURES", "normalization_mean=0.48235,0.45882,0.40784")
    (folder / file).unlink()
    shown = {"normalization_mean": "0.48235,0.45882,0.40784", "normalization_std": "0.0039,0.0039,0.0039"}
    some = {key: tensor.contiguous() for key, tensor in parameters("vgg16", until=2).items()}
    save_file(some, folder / "vgg16-imagenet1k_features.safetensors", shown)
    assert load("vgg16", folder, download=False).preprocessing.std == (0.0039, 0.0039, 0.0039)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("vgg16", "vgg16_bn"),
        ("vgg16_bn", "vgg16"),
        ("vgg16", "vgg19"),
        ("vgg19", "vgg16"),
        ("vgg11", "vgg13"),
        ("alexnet", "squeezenet1_1"),
        ("squeezenet1_1", "squeezenet1_0"),
        ("vgg11", "vgg_mini"),
        ("vgg_mini", "vgg11"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_another_network_s_weights_are_refused_by_its_name(folder: Path, name: str, owner: str, *, old: bool) -> None:
    """By the names and shapes of the parameters."""
    put(folder / f"{name}.pth", owner, old=old)
    refuses(folder, name, f"{name}.pth", f"this file is {owner}'s, not {name}'s")


def test_lower_layers_that_several_networks_have(folder: Path) -> None:
    """It can be used for each of them, and is refused for another network with all their names."""
    for name in ("vgg13", "vgg16", "vgg19"):
        put(folder / f"{name}.pth", "vgg16", until=7)
        assert find(name, folder, download=False).layers == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]
        assert list(networks(folder).get(name).layers)[-1] == "conv2_2"
        assert file_error(folder / f"{name}.pth") == ""
    put(folder / "vgg11.pth", "vgg16", until=7)
    refuses(folder, "vgg11", "vgg11.pth", "this file is vgg13's or vgg16's or vgg19's, not vgg11's")


def broken(**changes: Any) -> dict[str, Any]:
    """The parameters of VGG-11's first layer with a change."""
    return {**parameters("vgg11", until=0), **{key.replace("__", "."): value for key, value in changes.items()}}


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


def test_a_compiled_model_is_refused(folder: Path) -> None:
    """The error is that of a pickled model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us export it
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(folder / "vgg11.pt"))
    refuses(folder, "vgg11", "vgg11.pt", "a whole pickled model", "torch.save(model.state_dict(), file)")


def test_two_files_that_can_be_used_are_one_too_many(folder: Path) -> None:
    """Whichever covers more layers: it is unknown which one was meant."""
    put(folder / "vgg11.pth", "vgg11")
    put(folder / "vgg11-blocks1-2.pth", "vgg11", until=3)
    state = networks(folder).states()["vgg11"]
    assert not state.available
    assert "vgg11-blocks1-2.pth and vgg11.pth in" in state.reason
    assert "keep one of them" in state.reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalization_mean", "a,b,c"),
        ("normalization_mean", "0.5"),
        ("normalization_mean", "[0.5, 0.5, 0.5]"),
        ("normalization_mean", "0.5,nan,0.5"),
        ("normalization_std", "0.5,1e39,0.5"),
        ("normalization_std", "0.5,0,0.5"),
        ("normalization_std", "0.5,1e-60,0.5"),
        ("normalization_std", "-0.5,0.5,0.5"),
    ],
)
def test_a_normalisation_that_cannot_be_used(folder: Path, key: str, value: str) -> None:
    """Three numbers within float32, and a standard deviation above zero."""
    state = {key: tensor.contiguous() for key, tensor in parameters("vgg11", until=0).items()}
    save_file(state, folder / "vgg11.safetensors", {key: value})
    refuses(folder, "vgg11", "vgg11.safetensors", key, value)


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


def test_a_damaged_file_in_the_cache_is_reported(folder: Path, cache: Path) -> None:
    """As unavailable, and not as a network without layers."""
    put(cache / PUBLISHED, "squeezenet1_1", old=True)
    data = (cache / PUBLISHED).read_bytes()
    (cache / PUBLISHED).write_bytes(data[:-10])
    state = networks(folder, download=True).states()["squeezenet1_1"]
    assert not state.available
    assert f"{PUBLISHED}: damaged" in state.reason


def test_a_file_that_is_mended_is_used_without_a_restart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if it was refused; after a while if it could not be loaded."""
    put(folder / "vgg11_mine.pth", "vgg11", until=0)
    source = networks(folder)
    with pytest.raises(ModelUnavailable, match=r"name it vgg11-mine\.pth"):
        source.get("vgg11")
    (folder / "vgg11_mine.pth").rename(folder / "vgg11-mine.pth")
    assert source.states()["vgg11"].available
    assert list(source.get("vgg11").layers) == ["conv1_1"]
    torch.save(broken(features__0__bias=torch.full((64,), torch.nan)), folder / "vgg13.pth")
    with pytest.raises(ModelUnavailable, match="NaN"):
        source.get("vgg13")
    put(folder / "vgg13.pth", "vgg13", until=0)
    assert "NaN" in source.states()["vgg13"].reason
    monkeypatch.setattr(networks_module, "RETRY_SECONDS", 0)
    assert source.states()["vgg13"].available
    assert list(source.get("vgg13").layers) == ["conv1_1"]


def test_the_command_says_what_the_worker_says(folder: Path) -> None:
    """`python -m worker.weights` prints refusals, and files that are not used."""
    put(folder / "vgg16.pth", "vgg16_bn")
    put(folder / "vgg11.pth", "vgg11")
    (folder / "vgg11_x.pth").write_bytes(b"")
    (folder / "mine.pt").write_bytes(b"")
    ran = subprocess.run(
        [sys.executable, "-m", "worker.weights", "vgg16", "vgg11"],
        env={**os.environ, "KERNELSCOPE_WEIGHTS_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    reasons = {file.name: reason for file, reason in refused(folder).items()}
    assert set(reasons) == {"vgg16.pth", "vgg11_x.pth", "mine.pt"}
    assert ran.stdout.splitlines() == [
        f"unavailable: no weights for vgg16: none that can be used in {folder}: vgg16.pth: {reasons['vgg16.pth']}",
        "vgg11: vgg11.pth in the weights folder; covers conv1_1 to conv5_2",
        f"not used: mine.pt: {reasons['mine.pt']}",
        f"not used: vgg11_x.pth: {reasons['vgg11_x.pth']}",
    ]


def test_a_head_of_another_size_is_no_matter(folder: Path) -> None:
    """SqueezeNet's classifier is a convolution, but no layer."""
    state = parameters("squeezenet1_1") | {"classifier.1.weight": torch.zeros(10, 512, 1, 1)}
    torch.save(state, folder / "squeezenet1_1.pth")
    found = networks(folder).states()["squeezenet1_1"]
    assert (found.available, found.whole) == (True, True)


def test_a_network_that_is_not_built_in_is_there_with_its_file(folder: Path) -> None:
    """Also by torchvision's own file name; GoogLeNet's own files have another normalisation than ImageNet's."""
    shapes = {key: meta.shape for key, meta in ARCHITECTURES["googlenet"].module().state_dict().items()}
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    torch.save(state, folder / "googlenet-1378be20.pth")
    source = networks(folder)
    found = source.states()["googlenet"]
    assert (found.available, found.whole) == (True, True)
    assert found.preprocessing == Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "googlenet" in [network.name for network in source.registered()]
    assert "resnet50" not in source.states()
