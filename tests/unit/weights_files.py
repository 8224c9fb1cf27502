"""Weights files of torchvision's networks, whole, partial and damaged, and the networks of a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import ModelUnavailable
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.loaded import Networks
from worker.networks.weights import file_error

CPU = torch.device("cpu")
PUBLISHED = "squeezenet1_1-b8a52dc0.pth"  # torchvision's


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


def broken(**changes: Any) -> dict[str, Any]:
    """The parameters of VGG-11's first layer with a change."""
    return {**parameters("vgg11", until=0), **{key.replace("__", "."): value for key, value in changes.items()}}


def networks(folder: Path, *, download: bool = False) -> Networks:
    """The networks of that folder."""
    return Networks(folder, CPU, download=download)


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


def whole(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict of the parameters that maps depend on, scaled so that activations stay finite and nonzero."""
    generator = torch.Generator().manual_seed(seed)
    own, state = layers_of(name), {}
    for key, meta in ARCHITECTURES[name].module().state_dict().items():
        if not own.matters(key):
            continue
        if "running_var" in key or (meta.ndim == 1 and "weight" in key):
            state[key] = torch.rand(meta.shape, generator=generator) + 0.5
        elif meta.ndim in (2, 4):
            state[key] = torch.randn(meta.shape, generator=generator) * (2 / meta[0].numel()) ** 0.5
        else:
            state[key] = torch.randn(meta.shape, generator=generator) * 0.1
    return state
