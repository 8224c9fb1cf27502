"""Which network a weights file is for, by its name and its parameters."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.schemas import Preprocessing
from tests.unit.weights_files import PUBLISHED, networks, put, refuses, whole
from worker.networks.architectures import ARCHITECTURES
from worker.networks.weights import find


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
def test_another_network_s_weights_are_refused_by_its_name(folder: Path, name: str, owner: str) -> None:
    """By the names and shapes of the parameters."""
    put(folder / f"{name}.pth", owner, old=name == "alexnet")
    refuses(folder, name, f"{name}.pth", f"this file is {owner}'s, not {name}'s")


def test_two_files_that_can_be_used_are_one_too_many(folder: Path) -> None:
    """Whichever covers more layers: it is unknown which one was meant."""
    put(folder / "vgg11.pth", "vgg11")
    put(folder / "vgg11-blocks1-2.pth", "vgg11", until=3)
    state = networks(folder).states()["vgg11"]
    assert not state.available
    assert "vgg11-blocks1-2.pth and vgg11.pth in" in state.reason
    assert "keep one of them" in state.reason


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


def test_another_network_s_file_is_no_candidate(tmp_path: Path) -> None:
    """However similar its name."""
    save_file(whole("vgg11"), tmp_path / "vgg11-b.safetensors")
    save_file(whole("vgg11_bn"), tmp_path / "vgg11_bn.safetensors")
    assert find("vgg11", tmp_path, download=False).file.name == "vgg11-b.safetensors"
    assert find("vgg11_bn", tmp_path, download=False).file.name == "vgg11_bn.safetensors"
