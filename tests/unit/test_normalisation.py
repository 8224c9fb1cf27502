"""The normalisation that a weights file says or implies."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.unit.weights_files import parameters, put, refuses, whole
from worker.networks.weights import load


def test_normalisation_comes_from_the_metadata(tmp_path: Path) -> None:
    """A file may contain its mean and std; the default is ImageNet's."""
    own = {"normalization_mean": "0.1,0.2,0.3", "normalization_std": "0.4,0.5,0.6"}
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors", own)
    save_file(whole("vgg13"), tmp_path / "vgg13.safetensors")
    assert load("vgg11", tmp_path, download=False).preprocessing.mean == (0.1, 0.2, 0.3)
    assert load("vgg11", tmp_path, download=False).preprocessing.std == (0.4, 0.5, 0.6)
    assert load("vgg13", tmp_path, download=False).preprocessing.mean == (0.485, 0.456, 0.406)


AMDEGROOT = "vgg16_features-amdegroot-88682ab5.pth"  # torchvision's too, for inputs from 0 to 255


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
