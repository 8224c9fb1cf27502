"""Whether a weights file is what its name says: what it is refused for is here, or where it is read, in contents.py."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, cuts
from worker.networks.contents import Contents, Refused, contents_of, header, version

Triple = tuple[float, float, float]
SUFFIXES = (".safetensors", ".pth", ".pt")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
WRAPPERS = re.compile(r"^(?:(?:module|model|net|network|backbone|encoder|_orig_mod)\.)+")  # before parameters' names


@dataclass(frozen=True)
class Checkpoint:
    """The parameters of a network's convolutional part, or of the lower end of it."""

    tensors: dict[str, Tensor]  # `features.…` → parameter
    preprocessing: Preprocessing  # as the file says; ImageNet's where it does not
    layers: list[str]  # those that the tensors cover, from the input up without a gap


def weights_files(folder: Path) -> list[Path]:
    """Everything in a folder that has a weights file's suffix; nothing where there is no folder.

    Raises:
        OSError: it cannot be read.
    """
    try:
        files = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    return [file for file in files if file.suffix in SUFFIXES and file.name[0] != "." and not file.is_dir()]


def network_of(file: Path) -> str | None:
    """The network whose name a file's name begins with: vgg16_bn for `vgg16_bn-mine.pth`, and for `vgg16_bn_x.pth`."""
    return max((name for name in ARCHITECTURES if file.name.lower().startswith(name)), key=len, default=None)


def inspect(file: Path, architecture: str | None = None) -> Checkpoint:
    """A file's parameters on the meta device, without their numbers. A file that has not changed is not read again.

    Args:
        architecture: that it is for; by its name where none is given.

    Raises:
        Refused: for its name, or for the names and shapes of its parameters.
    """
    name = architecture or _checked_name(file)
    return _checked(file, name, header(file, *version(file)))


def read(file: Path, architecture: str | None = None) -> Checkpoint:
    """A file's parameters.

    Raises:
        Refused: as `inspect` would, or for their numbers.
    """
    name, before = architecture or _checked_name(file), version(file)
    contents = contents_of(file, "cpu")
    if version(file) != before:
        raise Refused("it was written to while it was read")
    checkpoint = _checked(file, name, contents)
    for key, tensor in checkpoint.tensors.items():
        if not tensor.float().isfinite().all():
            raise Refused(f"{key} holds NaN or infinity")
    return checkpoint


def covered(name: str, keys: Collection[str]) -> list[str]:
    """The layers whose every parameter, and every one below, is among the keys."""
    needed = _needed(name)
    return list(takewhile(lambda layer: needed[layer] <= set(keys), needed))


@cache
def _needed(name: str) -> dict[str, frozenset[str]]:
    """The parameters that each layer needs, by layer, in order."""
    features = ARCHITECTURES[name].features()
    return {cut.name: frozenset(f"features.{key}" for key in cut.keys(features)) for cut in cuts(name).values()}


def _checked_name(file: Path) -> str:
    """The network that a file is for: vgg16 for `vgg16.pth`, `vgg16-397923af.pth` and `vgg16-blocks1-2.safetensors`."""
    name = network_of(file)
    if name is None:
        raise Refused(f"no network has this name; it should begin with one of {', '.join(ARCHITECTURES)}, then - or .")
    if name in models.list_models():
        for entry in models.get_model_weights(name):
            _check_inputs(file, name, entry)
    if not file.name.startswith((f"{name}-", f"{name}.")):
        rest = file.stem[len(name) :].strip(" _-")
        right = f"{name}-{rest}{file.suffix}" if rest else f"{name}{file.suffix}"
        raise Refused(f"no network has this name; name it {right} to use it as {name}")
    return name


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


def _checked(file: Path, name: str, contents: Contents) -> Checkpoint:
    """The parameters, if they are the network's."""
    if contents.damage:
        raise Refused(contents.damage)
    sets = {place: own for place, entries in contents.sets.items() if (own := _own(entries))}
    if not sets:
        there = ", ".join(list(chain.from_iterable(contents.sets.values()))[:3]) or "nothing"
        raise Refused(f"holds no parameters of {name} by torchvision's names, such as features.0.weight, but {there}")
    if len(sets) > 1:
        places = " and ".join(f"`{place}`" if place else "by themselves" for place in sets)
        raise Refused(f"holds parameters of {name} more than once, {places}; save those that are meant alone")
    (tensors,) = sets.values()
    for key, entry in tensors.items():
        if not isinstance(entry, Tensor) or entry.layout is not torch.strided or not entry.is_floating_point():
            raise Refused(f"{key} is no dense tensor of floating-point numbers")
    _check_shapes(name, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    layers = covered(name, tensors)
    if not layers:
        raise Refused(f"does not hold every parameter of {next(iter(cuts(name)))}, the first layer of {name}")
    return Checkpoint(tensors, _preprocessing(contents.metadata, _published(file, name)), layers)


def _own(entries: dict[str, Any]) -> dict[str, Any]:
    """What a layer's feature maps depend on, by torchvision's names: without what wrappers put before them."""
    names = {key: WRAPPERS.sub("", key) for key in entries}
    keys = {name: key for key, name in names.items() if _matters(name)}
    for key, name in names.items():
        if _matters(name) and keys[name] != key:
            raise Refused(f"holds {name} twice, as {key} and as {keys[name]}; save the one that is meant alone")
    return {name: entries[key] for name, key in keys.items()}


def _matters(key: str) -> bool:
    """Whether a layer's feature maps depend on this parameter."""
    return key.startswith("features.") and not key.endswith("num_batches_tracked")


def _check_shapes(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse parameters that the network does not have, or has in another shape; say which networks have them."""
    own = _shapes(name)
    strange = [key for key, shape in shapes.items() if own.get(key) != shape]
    if not strange:
        return
    if owners := [other for other in ARCHITECTURES if shapes.items() <= _shapes(other).items()]:
        whose = " or ".join(f"{owner}'s" for owner in owners)
        raise Refused(f"this file is {whose}, not {name}'s; name it, or register it, as {' or '.join(owners)}")
    key = strange[0]
    if key not in own:
        raise Refused(f"does not fit {name}, which has no {key}")
    raise Refused(f"does not fit {name}: {key} is {_joined(shapes[key], '×')}, not {_joined(own[key], '×')}")


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's parameters."""
    return {f"features.{key}": tuple(meta.shape) for key, meta in ARCHITECTURES[name].features().state_dict().items()}


def _published(file: Path, name: str) -> Preprocessing | None:
    """That of torchvision's own file of this network, known by the hash in its name."""
    for entry in models.get_model_weights(name) if name in models.list_models() else ():
        if file.name.endswith(entry.url.rsplit("-", 1)[-1]):
            preset = entry.transforms()
            return Preprocessing(mean=tuple(preset.mean), std=tuple(preset.std))
    return None


def _preprocessing(metadata: dict[str, str], known: Preprocessing | None) -> Preprocessing:
    """Of the inputs, for pixels from 0 to 1; where nothing is said what is known of the file, else ImageNet's."""
    mean = _triple(metadata, "normalization_mean", (known or IMAGENET).mean)
    std = _triple(metadata, "normalization_std", (known or IMAGENET).std)
    if not (torch.tensor(std) > 0).all():  # in float32, as it is used
        raise Refused(f"normalization_std in its metadata is {metadata['normalization_std']}; it must be above zero")
    said = {"normalization_mean", "normalization_std"} <= metadata.keys()
    return Preprocessing(mean=mean, std=std, assumed=known is None and not said)


def _triple(metadata: dict[str, str], key: str, default: Triple) -> Triple:
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
