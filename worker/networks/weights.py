"""Finds a network's weights: in the weights folder, bundled, in torch's cache, or as torchvision's download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torchvision.models import list_models

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, layers_of
from worker.networks.checkpoints import (
    IMAGENET,
    Checkpoint,
    ExpectedNetwork,
    inspect,
    network_of,
    published,
    read,
    weights_files,
)
from worker.networks.contents import Refused, sha256, version
from worker.networks.definitions import FILE, Definition, definitions
from worker.networks.download import cache_file, fetch, megabytes
from worker.networks.registry import Entry, Registry
from worker.networks.vgg_mini import WEIGHTS_FILE

BUNDLED = Path(__file__).parent / "bundled"  # downloaded by the worker image's build argument WEIGHTS

PUBLISHED = frozenset(list_models())  # torchvision's

Source = Literal["folder", "store", "bundled", "cache", "download"]


@dataclass(frozen=True)
class Weights(Checkpoint):
    """A network's weights and their source."""

    preprocessing: Preprocessing
    file: Path
    source: Source
    sha256: str
    version: tuple[int, int]  # of the file


@dataclass(frozen=True)
class LocatedWeights:
    """A weights file that exists or can be downloaded."""

    file: Path
    source: Source
    architecture: str
    layers: list[str]  # that it covers, by its header
    preprocessing: Preprocessing
    megabytes: float = 0  # to download

    @property
    def expected(self) -> ExpectedNetwork:
        """The network of its parameters."""
        return ExpectedNetwork(self.architecture, len(self.preprocessing.mean))

    @property
    def reason(self) -> str:
        """The source of the weights, as a phrase."""
        return {
            "folder": f"{self.file.name} in the weights folder",
            "store": f"{self.file.name}, which is registered in the object store, {self.megabytes:.0f} MB",
            "bundled": f"{self.file.name}, bundled with Kernelscope",
            "cache": f"torchvision's {self.file.name}, from torch's cache",
            "download": f"torchvision's {self.file.name}, {self.megabytes:.0f} MB, downloaded on first use",
        }[self.source]


def find(name: str, folder: Path, registry: Registry | None = None, *, download: bool) -> LocatedWeights:
    """Locate the weights of a network.

    If the folder has files of the network's name and none can be used, the network has no weights: others are not used
    instead. Two usable files are an error.

    Raises:
        ModelUnavailable: no weights; says why.
    """
    entry = registry.entries().get(name) if registry else None
    if entry and registry:
        return _in_store(name, entry, folder, registry)
    if found := _in_folder(name, folder):
        return found
    for file, source in _bundled_or_cached(name):
        try:
            return _found(file, source, name)
        except Refused as error:
            raise ModelUnavailable(f"no weights for {name}: {file}: {error}") from error
    if not download:
        raise ModelUnavailable(
            f"no weights for {name}: none in {folder} (a file named {name}.pth or {name}-….pth, or the same with "
            ".safetensors), and downloading is turned off"
        )
    own = layers_of(name)
    fed = published(cache_file(name), name) or IMAGENET
    return LocatedWeights(cache_file(name), "download", name, own.main(own.layers), fed, megabytes(name))


def file_of(name: str, folder: Path, registry: Registry | None = None, *, download: bool) -> Path | None:
    """The file that `find` locates; None where there are no weights."""
    with suppress(ModelUnavailable):
        return find(name, folder, registry, download=download).file
    return None


def _in_store(name: str, entry: Entry, folder: Path, registry: Registry) -> LocatedWeights:
    known = definitions(folder)
    if name in known.networks or name in known.wrong:
        raise ModelUnavailable(
            f"no weights for {name}: it is registered twice, in {folder / FILE} and in the object store; leave the one "
            f"that is meant (kernelscope models remove {name})"
        )
    fed = entry.preprocessing(entry.of_file)
    return LocatedWeights(registry.place(entry), "store", entry.arch, list(entry.layers), fed, entry.size / 1e6)


def _in_folder(name: str, folder: Path) -> LocatedWeights | None:
    """The registered network's file, else the file with the network's name, if any."""
    known = definitions(folder)
    if definition := known.networks.get(name):
        return _registered(name, definition, folder)
    if name not in ARCHITECTURES:
        raise ModelUnavailable(f"no weights for {name}: no network of this name is registered")
    usable: list[LocatedWeights] = []
    reasons: list[str] = []
    files = _own_files(name, folder)
    if files and known.unreadable:
        raise ModelUnavailable(
            f"no weights for {name}: {folder / FILE} {known.unreadable}; correct it first: it may define "
            f"{files[0].name}"
        )
    for file in files:
        try:
            usable.append(_found(file, "folder", name))
        except Refused as error:
            reasons.append(f"{file.name}: {error}")
    if len(usable) > 1:
        names = " and ".join(found.file.name for found in usable)
        raise ModelUnavailable(
            f"no weights for {name}: {names} in {folder} can both be used; keep one of them, or give each a "
            f"name of its own in {FILE}"
        )
    if reasons and not usable:
        raise ModelUnavailable(f"no weights for {name}: none that can be used in {folder}: {'; '.join(reasons)}")
    return usable[0] if usable else None


def _found(file: Path, source: Source, name: str) -> LocatedWeights:
    checkpoint = inspect(file)
    assert checkpoint.preprocessing  # only what is registered may see grey
    return LocatedWeights(file, source, name, checkpoint.layers, checkpoint.preprocessing)


def _registered(name: str, definition: Definition, folder: Path) -> LocatedWeights:
    file = folder / definition.weights
    try:
        checkpoint = inspect(file, ExpectedNetwork(definition.arch, definition.channels))
    except Refused as error:
        raise ModelUnavailable(f"no weights for {name}: {file}: {error}") from error
    fed = definition.preprocessing(checkpoint.preprocessing)
    return LocatedWeights(file, "folder", definition.arch, checkpoint.layers, fed)


def refused(folder: Path) -> dict[Path, str]:
    """The files of the weights folder that cannot be used, by their headers, with the reason."""
    reasons = {}
    known = definitions(folder)
    if known.troubles:
        reasons[folder / FILE] = known.troubles
    with suppress(OSError):  # `find` reports it
        for file in weights_files(folder):
            if file.name in known.files and registered_for(file) is None:
                continue  # the error of its table is reported
            try:
                inspect(file, registered_for(file))
            except Refused as error:
                reasons[file] = str(error)
    return reasons


def registered_for(file: Path) -> ExpectedNetwork | None:
    """The network that a file of the weights folder is registered for, if any."""
    known = definitions(file.parent).networks.values()
    return next((ExpectedNetwork(one.arch, one.channels) for one in known if one.weights == file.name), None)


def load(name: str, folder: Path, registry: Registry | None = None, *, download: bool) -> Weights:
    """Read the weights, after a download if necessary.

    Raises:
        ModelUnavailable: no weights, a file that cannot be used, or a download that failed; says which.
        StoreUnavailable: the weights are in the object store, which is unavailable.
    """
    found = find(name, folder, registry, download=download)
    if found.source == "download":
        fetch(name)
    try:
        if registry and (entry := registry.entries().get(name)):
            registry.fetch(entry)
        return _read(found)
    except StoreUnavailable:
        raise
    except (Refused, OSError, ModelUnavailable) as error:
        raise ModelUnavailable(f"no weights for {name}: {found.file}: {error}") from error


def _read(found: LocatedWeights) -> Weights:
    seen = version(found.file)
    checkpoint = replace(read(found.file, found.expected), preprocessing=found.preprocessing)
    digest = sha256(found.file)
    if version(found.file) != seen:
        raise Refused("it was written to while it was read")
    return Weights(**vars(checkpoint), file=found.file, source=found.source, sha256=digest, version=seen)


def network_names(folder: Path) -> set[str]:
    """Architectures with weights on this machine: in the folder, bundled, or in torch's cache."""
    names: set[str | None] = set()
    with suppress(OSError):  # `find` reports it
        taken = definitions(folder).files
        names = {network_of(file) for file in weights_files(folder) if file.name not in taken}
    return {name for name in names if name} | {name for name in ARCHITECTURES if any(_bundled_or_cached(name))}


def cached() -> Path:
    """The folder for weights that were fetched from the object store."""
    return Path(torch.hub.get_dir()) / "kernelscope"


def file_error(file: Path) -> str:
    """The error of a weights file after reading it completely; empty: none."""
    try:
        read(file, registered_for(file))
    except Refused as error:
        return str(error)
    published = file.stem.removeprefix(f"{network_of(file)}-")
    if re.fullmatch(r"[0-9a-f]{8}", published) and not sha256(file).startswith(published):
        return f"it is not the file that its name says: SHA-256 {sha256(file)[:8]}… instead of {published}…"
    return ""


def _own_files(name: str, folder: Path) -> list[Path]:
    try:
        taken = definitions(folder).files
        return [file for file in weights_files(folder) if network_of(file) == name and file.name not in taken]
    except OSError as error:
        raise ModelUnavailable(f"no weights for {name}: {folder} cannot be read ({error.strerror})") from error


def _bundled_or_cached(name: str) -> Iterator[tuple[Path, Source]]:
    """The bundled files of a network, then the one in torch's cache."""
    for file in (WEIGHTS_FILE, *weights_files(BUNDLED)):
        if network_of(file) == name:
            yield file, "bundled"
    if name in PUBLISHED and cache_file(name).is_file():
        yield cache_file(name), "cache"
