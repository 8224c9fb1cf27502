"""What a weights file holds, and whether it is what its name says: everything that a file is refused for is here."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import load as loads
from torch import Tensor
from torchvision import models

from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, cuts

Triple = tuple[float, float, float]
MOST_BYTES = 4_000_000_000  # of a file: it is read into memory as a whole
SUFFIXES = (".safetensors", ".pth", ".pt")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
WRAPPERS = re.compile(r"^(?:(?:module|model|net|network|backbone|encoder|_orig_mod)\.)+")  # before parameters' names
NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "state_dict_ema")
PICKLED = (
    "damaged, or more than named tensors: a whole pickled model, say, which nobody can read without running code from "
    "the file. Save its parameters alone: torch.save(model.state_dict(), file), or safetensors.torch.save_file"
)


class Refused(Exception):
    """A file cannot be used as weights; the message says why, and where that is known what would be right."""


@dataclass(frozen=True)
class Checkpoint:
    """The parameters of a network's convolutional part, or of the lower end of it."""

    tensors: dict[str, Tensor]  # `features.…` → parameter
    preprocessing: Preprocessing  # as the file says; ImageNet's where it does not
    layers: list[str]  # those that the tensors cover, from the input up without a gap


@dataclass(frozen=True)
class Contents:
    """What is in a file, whatever it may be.

    `sets`: the dictionaries of named tensors that it holds, by where they are in it; a bare state dict's is "".
    """

    sets: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    damage: str = ""  # why there are none


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
    return _checked(file, name, _header(file, *_version(file)))


def read(file: Path, architecture: str | None = None) -> Checkpoint:
    """A file's parameters.

    Raises:
        Refused: as `inspect` would, or for their numbers.
    """
    name, version = architecture or _checked_name(file), _version(file)
    contents = _contents(file, "cpu")
    if _version(file) != version:
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
    return Checkpoint(tensors, _preprocessing(contents.metadata, known=_published(file, name)), layers)


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


def _published(file: Path, name: str) -> bool:
    """Whether it is torchvision's own file of this network, by the hash in its name."""
    entries = models.get_model_weights(name) if name in models.list_models() else ()
    return any(file.name.endswith(entry.url.rsplit("-", 1)[-1]) for entry in entries)


def _preprocessing(metadata: dict[str, str], *, known: bool) -> Preprocessing:
    """Of the inputs, for pixels from 0 to 1; ImageNet's where nothing is said.

    Args:
        known: whether that is known to be so where nothing is said.
    """
    mean = _triple(metadata, "normalization_mean", IMAGENET_MEAN)
    std = _triple(metadata, "normalization_std", IMAGENET_STD)
    if not (torch.tensor(std) > 0).all():  # in float32, as it is used
        raise Refused(f"normalization_std in its metadata is {metadata['normalization_std']}; it must be above zero")
    said = {"normalization_mean", "normalization_std"} <= metadata.keys()
    return Preprocessing(mean=mean, std=std, assumed=not (known or said))


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


def _version(file: Path) -> tuple[int, int]:
    """With which a file's contents change: when it was written, in ns, and its size in bytes."""
    try:
        status = file.stat()
    except OSError as error:  # a link that leads nowhere, say
        raise Refused(f"cannot be read ({error.strerror})") from error
    if status.st_size > MOST_BYTES:
        raise Refused(
            f"is {status.st_size / 1e9:.1f} GB, and more than {MOST_BYTES / 1e9:.0f} GB are not read; save the "
            "network's parameters alone"
        )
    return status.st_mtime_ns, status.st_size


@lru_cache
def _header(file: Path, modified: int, size: int) -> Contents:  # noqa: ARG001 - with which its contents change
    return _contents(file, "meta")


def _described(opened: Any, name: str) -> Tensor:
    """A tensor of the same shape and kind, without its numbers, which are not read."""
    one = opened.get_slice(name)
    return torch.empty(one.get_shape(), dtype=FLOATS.get(one.get_dtype(), torch.int64), device="meta")


def _unpacked(file: Path, device: str) -> Any:
    """A .pth; without its numbers they are not read either, but in the format before torch 1.6."""
    mapped = device == "meta" and is_zipfile(file)  # the older format cannot be
    return torch.load(file, map_location=device, weights_only=True, mmap=mapped)


def _contents(file: Path, device: str) -> Contents:
    """Read a file, without running code from it."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                described = {name: _described(opened, name) for name in opened.keys()}  # noqa: SIM118 - no mapping
                metadata = opened.metadata() or {}
            # not through its memory map: where a file is cut short meanwhile, that ends the process
            return Contents({"": described if device == "meta" else loads(file.read_bytes())}, metadata)
        loaded = _unpacked(file, device)
    except OSError as error:  # not for good, perhaps
        raise Refused(f"damaged, or cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError:
        return Contents({}, {}, PICKLED)
    except Exception as error:  # whatever a damaged file makes the readers raise
        text = str(error)
        return Contents({}, {}, PICKLED if "TorchScript" in text else f"damaged ({text[:200] or type(error).__name__})")
    return Contents(dict(_sets(loaded)), {})


def _sets(loaded: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The dictionaries of named tensors in a checkpoint, as training programs nest them, and where each is."""
    if not isinstance(loaded, dict):
        return
    if any(isinstance(entry, Tensor) for entry in loaded.values()) or not place:
        yield place, {str(key): entry for key, entry in loaded.items()}
    for name in NESTED:
        yield from _sets(loaded.get(name), f"{place}.{name}".strip("."))
