"""Checks of weights files: whether a file holds the parameters of the network that it is named for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import models

from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, BUILT_IN, DENSENETS_OLD, layers_of, of_channels
from worker.networks.contents import FileContents, Refused, contents_of, header, version

SUFFIXES = (".safetensors", ".pth", ".pt")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
SCALED_INSIDE = (
    "googlenet",
    "inception_v3",
)  # torchvision's files expect `transform_input`, which undoes ImageNet's normalisation
WRAPPERS = re.compile(
    r"^(?:(?:module|model|net|network|backbone|encoder|_orig_mod)\.)+"
)  # prefixes of parameters' names


class ExpectedNetwork(NamedTuple):
    """The network that a file must hold the parameters of."""

    architecture: str
    channels: int = 3  # of the network's input


@dataclass(frozen=True)
class Checkpoint:
    """The parameters that a network's maps depend on, possibly of its lower layers only."""

    tensors: dict[str, Tensor]  # by torchvision's names
    preprocessing: Preprocessing | None  # from the file, else ImageNet's; None for grey input
    layers: list[str]  # the main layers that the tensors cover


def weights_files(folder: Path) -> list[Path]:
    """The files of a folder with the suffix of a weights file; none if the folder does not exist.

    Raises:
        OSError: it cannot be read.
    """
    try:
        files = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [file for file in files if file.suffix in SUFFIXES and file.name[0] != "." and not file.is_dir()]


def network_of(file: Path) -> str | None:
    """The network whose name a file's name starts with: vgg16_bn for `vgg16_bn-mine.pth` and for `vgg16_bn_x.pth`.

    Torchvision's own files are recognised by their names, some of which start differently.
    """
    return _named(file.name)


@lru_cache(maxsize=1024)
def _named(file: str) -> str | None:
    known = (name for name in ARCHITECTURES if file.lower().startswith(name))
    return _torchvisions().get(file) or max(known, key=len, default=None)


def inspect(file: Path, expected: ExpectedNetwork | None = None) -> Checkpoint:
    """A file's parameters on the meta device, without their values. Cached until the file changes.

    Args:
        file: to be inspected.
        expected: the network; by default that of the file's name.

    Raises:
        Refused: for its name, or for the names or shapes of its parameters.
    """
    return _checked(file, expected or ExpectedNetwork(_checked_name(file)), header(file, *version(file)))


def read(file: Path, expected: ExpectedNetwork | None = None) -> Checkpoint:
    """A file's parameters.

    Raises:
        Refused: as `inspect` would, or for their numbers.
    """
    expected, before = expected or ExpectedNetwork(_checked_name(file)), version(file)
    contents = contents_of(file, "cpu")
    if version(file) != before:
        raise Refused("it was written to while it was read")
    checkpoint = _checked(file, expected, contents)
    for key, tensor in checkpoint.tensors.items():
        if not tensor.float().isfinite().all():
            raise Refused(f"{key} holds NaN or infinity")
    return checkpoint


def _checked_name(file: Path) -> str:
    """The network by a file's name: vgg16 for `vgg16.pth`, `vgg16-397923af.pth` and `vgg16-blocks1-2.safetensors`."""
    name = network_of(file)
    if name is None:
        raise Refused(f"no network has this name; it should begin with one of {', '.join(ARCHITECTURES)}, then - or .")
    if name in BUILT_IN and name in models.list_models():
        for entry in models.get_model_weights(name):
            _check_inputs(file, name, entry)
    if file.name not in _torchvisions() and not file.name.startswith((f"{name}-", f"{name}.")):
        rest = file.stem[len(name) :].strip(" _-")
        right = f"{name}-{rest}{file.suffix}" if rest else f"{name}{file.suffix}"
        raise Refused(f"no network has this name; name it {right} to use it as {name}")
    return name


@cache
def _torchvisions() -> dict[str, str]:
    """The network of each of torchvision's own files, by the file's name."""
    names = [name for name in ARCHITECTURES if name in models.list_models()]
    return {entry.url.rpartition("/")[2]: name for name in names for entry in models.get_model_weights(name)}


def _check_inputs(file: Path, name: str, entry: models.WeightsEnum) -> None:
    """Refuse a file of torchvision's, known by the hash in its name, whose inputs are not normalised as ImageNet's."""
    preset = entry.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if file.name.endswith(entry.url.rsplit("-", 1)[-1]) and (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise Refused(
            f"these are torchvision's {entry.name}, whose inputs are not normalised as ImageNet's, and a {file.suffix} "
            f"cannot say so; save them as {name}-{entry.name.lower()}.safetensors with the metadata "
            f"normalization_mean={_joined(mean, ',')} and normalization_std={_joined(std, ',')}"
        )


def _checked(file: Path, expected: ExpectedNetwork, contents: FileContents) -> Checkpoint:
    """The parameters, if they are the network's."""
    name = expected.architecture
    if contents.damage:
        raise Refused(contents.damage)
    sets = {place: own for place, entries in contents.sets.items() if (own := _own(name, entries))}
    if not sets:
        there = ", ".join(list(chain.from_iterable(contents.sets.values()))[:3]) or "nothing"
        first = layers_of(name).graph.parameters[0]
        raise Refused(f"holds no parameters of {name} by torchvision's names, such as {first}, but {there}")
    if len(sets) > 1:
        places = " and ".join(f"`{place}`" if place else "by themselves" for place in sets)
        raise Refused(f"holds parameters of {name} more than once, {places}; save one of these alone")
    (tensors,) = sets.values()
    for key, entry in tensors.items():
        if not isinstance(entry, Tensor) or entry.layout is not torch.strided or not entry.is_floating_point():
            raise Refused(f"{key} is no dense tensor of floating-point numbers")
    _check_shapes(expected, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    traced = layers_of(name)
    layers = traced.main(traced.reached(tensors))
    if not layers:
        first = traced.main(traced.layers)[0]
        raise Refused(f"does not hold every parameter of {first}, the first layer of {name}")
    preprocessing = _preprocessing(contents.metadata, published(file, name)) if expected.channels == 3 else None
    return Checkpoint(tensors, preprocessing, layers)


def _own(name: str, entries: dict[str, Any]) -> dict[str, Any]:
    """The parameters that feature maps depend on, by torchvision's names, without prefixes of wrappers."""
    names = {key: DENSENETS_OLD[0].sub(DENSENETS_OLD[1], WRAPPERS.sub("", key)) for key in entries}
    matters = layers_of(name).matters
    keys = {own: key for key, own in names.items() if matters(own)}
    for key, own in names.items():
        if matters(own) and keys[own] != key:
            raise Refused(f"holds {own} twice, as {key} and as {keys[own]}; save one of these alone")
    return {own: entries[key] for own, key in keys.items()}


def _check_shapes(expected: ExpectedNetwork, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse parameters that the network does not have, or not in this shape; name the networks that have them."""
    name, own = expected.architecture, _shapes(*expected)
    strange = [key for key, shape in shapes.items() if own.get(key) != shape]
    if not strange:
        return
    for channels in (1, 3):
        if shapes.items() <= _shapes(name, channels).items():
            raise Refused(
                f"its first convolution takes {channels} channel{'s' if channels > 1 else ''}, not "
                f"{expected.channels}; register it with channels = {channels}"
            )
    if owners := [other for other in ARCHITECTURES if shapes.items() <= _shapes(other, expected.channels).items()]:
        whose = " or ".join(f"{owner}'s" for owner in owners)
        raise Refused(f"this file is {whose}, not {name}'s; name it, or register it, as {' or '.join(owners)}")
    key = strange[0]
    if key not in own:
        raise Refused(f"does not fit {name}, which has no {key}")
    raise Refused(f"does not fit {name}: {key} is {_joined(shapes[key], '×')}, not {_joined(own[key], '×')}")


@cache
def _shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters, for inputs with this number of channels."""
    return {key: tuple(tensor.shape) for key, tensor in of_channels(name, channels).module().state_dict().items()}


def published(file: Path, name: str) -> Preprocessing | None:
    """The preprocessing of torchvision's own file of this network, recognised by the hash in its name."""
    for entry in models.get_model_weights(name) if name in models.list_models() else ():
        if file.name.endswith(entry.url.rsplit("-", 1)[-1]):
            preset = entry.transforms()
            known = ((0.5,) * 3, (0.5,) * 3) if name in SCALED_INSIDE else (preset.mean, preset.std)
            return Preprocessing(mean=tuple(known[0]), std=tuple(known[1]))
    return None


def _preprocessing(metadata: dict[str, str], known: Preprocessing | None) -> Preprocessing:
    """The preprocessing of the metadata, for pixels in [0, 1]; else the known one of the file, else ImageNet's."""
    mean = _triple(metadata, "normalization_mean", known.mean if known else IMAGENET_MEAN)
    std = _triple(metadata, "normalization_std", known.std if known else IMAGENET_STD)
    if not (torch.tensor(std) > 0).all():  # in float32, as it is used
        raise Refused(f"normalization_std in its metadata is {metadata['normalization_std']}; it must be above zero")
    complete = {"normalization_mean", "normalization_std"} <= metadata.keys()
    return Preprocessing(mean=mean, std=std, assumed=known is None and not complete)


def _triple(metadata: dict[str, str], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    if key not in metadata:
        return default
    try:
        numbers = list(map(float, metadata[key].split(",")))
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not torch.tensor(numbers).isfinite().all():  # in float32
        raise Refused(f"{key} in its metadata is {metadata[key]}; it must be three numbers with commas between them")
    return numbers[0], numbers[1], numbers[2]


def _joined(numbers: Iterable[float], by: str) -> str:
    return by.join(map(str, numbers))
