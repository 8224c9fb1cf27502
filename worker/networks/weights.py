"""Where a network's weights come from: the weights folder, else the program itself, else torchvision's download."""

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
    Meant,
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

BUNDLED = Path(__file__).parent / "bundled"  # what the worker image's build argument WEIGHTS downloaded

PUBLISHED = frozenset(list_models())  # torchvision's

Source = Literal["folder", "store", "bundled", "cache", "download"]


@dataclass(frozen=True)
class Weights(Checkpoint):
    """A network's weights, and where they are from."""

    preprocessing: Preprocessing
    file: Path
    source: Source
    sha256: str
    version: tuple[int, int]  # of the file


@dataclass(frozen=True)
class Found:
    """A weights file that is there, or that would be downloaded."""

    file: Path
    source: Source
    architecture: str
    layers: list[str]  # that it covers, as far as is known before it is read
    preprocessing: Preprocessing
    megabytes: float = 0  # to download

    @property
    def meant(self) -> Meant:
        """What its parameters are of."""
        return Meant(self.architecture, len(self.preprocessing.mean))

    @property
    def reason(self) -> str:
        """One phrase on where the weights are from."""
        return {
            "folder": f"{self.file.name} in the weights folder",
            "store": f"{self.file.name}, which is registered in the object store, {self.megabytes:.0f} MB",
            "bundled": f"{self.file.name}, which comes with Kernelscope",
            "cache": f"torchvision's {self.file.name}, downloaded before",
            "download": f"torchvision's {self.file.name}, {self.megabytes:.0f} MB, downloaded on first use",
        }[self.source]


def find(name: str, folder: Path, registry: Registry | None = None, *, download: bool) -> Found:
    """The weights for a network.

    Where the folder has files of the network's name and none can be used, it has no weights: whoever put them there
    does not want others instead. Where two can be used nobody but the user knows which is meant.

    Raises:
        ModelUnavailable: no weights; says why.
    """
    entry = registry.entries().get(name) if registry else None
    if entry and registry:
        return _in_store(name, entry, folder, registry)
    if found := _in_folder(name, folder):
        return found
    for file, source in _kept(name):
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
    return Found(cache_file(name), "download", name, own.main(own.layers), fed, megabytes(name))


def _in_store(name: str, entry: Entry, folder: Path, registry: Registry) -> Found:
    known = definitions(folder)
    if name in known.networks or name in known.wrong:
        raise ModelUnavailable(
            f"no weights for {name}: it is registered twice, in {folder / FILE} and in the object store; leave the one "
            f"that is meant (kernelscope models remove {name})"
        )
    fed = entry.preprocessing(entry.of_file)
    return Found(registry.place(entry), "store", entry.arch, list(entry.layers), fed, entry.size / 1e6)


def _in_folder(name: str, folder: Path) -> Found | None:
    """The registered network's file, or else the one that has the network's name."""
    known = definitions(folder)
    if definition := known.networks.get(name):
        return _registered(name, definition, folder)
    if name not in ARCHITECTURES:
        raise ModelUnavailable(f"no weights for {name}: it is not registered here, or not any more")
    usable: list[Found] = []
    reasons: list[str] = []
    files = _own_files(name, folder)
    if files and known.unreadable:
        raise ModelUnavailable(
            f"no weights for {name}: {folder / FILE} {known.unreadable}; until that is mended nobody knows what "
            f"{files[0].name} is"
        )
    for file in files:
        try:
            usable.append(_found(file, "folder", name))
        except Refused as error:
            reasons.append(f"{file.name}: {error}")
    if len(usable) > 1:
        names = " and ".join(found.file.name for found in usable)
        raise ModelUnavailable(
            f"no weights for {name}: {names} in {folder} can both be used; leave the one that is meant, or give each a "
            f"name of its own in {FILE}"
        )
    if reasons and not usable:
        raise ModelUnavailable(f"no weights for {name}: none that can be used in {folder}: {'; '.join(reasons)}")
    return usable[0] if usable else None


def _found(file: Path, source: Source, name: str) -> Found:
    checkpoint = inspect(file)
    assert checkpoint.preprocessing  # only what is registered may see grey
    return Found(file, source, name, checkpoint.layers, checkpoint.preprocessing)


def _registered(name: str, definition: Definition, folder: Path) -> Found:
    file = folder / definition.weights
    try:
        checkpoint = inspect(file, Meant(definition.arch, definition.channels))
    except Refused as error:
        raise ModelUnavailable(f"no weights for {name}: {file}: {error}") from error
    fed = definition.preprocessing(checkpoint.preprocessing)
    return Found(file, "folder", definition.arch, checkpoint.layers, fed)


def refused(folder: Path) -> dict[Path, str]:
    """The files of the weights folder that cannot be used, as far as is known before they are read, and why."""
    told = {}
    known = definitions(folder)
    if known.troubles:
        told[folder / FILE] = known.troubles
    with suppress(OSError):  # `find` tells it
        for file in weights_files(folder):
            if file.name in known.files and registered_for(file) is None:
                continue  # its table is wrong, which is told
            try:
                inspect(file, registered_for(file))
            except Refused as error:
                told[file] = str(error)
    return told


def registered_for(file: Path) -> Meant | None:
    """What a file of the weights folder is registered for."""
    known = definitions(file.parent).networks.values()
    return next((Meant(one.arch, one.channels) for one in known if one.weights == file.name), None)


def load(name: str, folder: Path, registry: Registry | None = None, *, download: bool) -> Weights:
    """Read the weights; download them first where that is the only way.

    Raises:
        ModelUnavailable: no weights, a file that cannot be used, or a download that failed; says which.
        StoreUnavailable: it is in the object store, which is away.
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


def _read(found: Found) -> Weights:
    seen = version(found.file)
    checkpoint = replace(read(found.file, found.meant), preprocessing=found.preprocessing)
    digest = sha256(found.file)
    if version(found.file) != seen:
        raise Refused("it was written to while it was read")
    return Weights(**vars(checkpoint), file=found.file, source=found.source, sha256=digest, version=seen)


def network_names(folder: Path) -> set[str]:
    """Networks by torchvision's names of which there are weights: in the folder, or downloaded before."""
    names: set[str | None] = set()
    with suppress(OSError):  # `find` tells it
        taken = definitions(folder).files
        names = {network_of(file) for file in weights_files(folder) if file.name not in taken}
    return {name for name in names if name} | {name for name in ARCHITECTURES if any(_kept(name))}


def cached() -> Path:
    """Where weights are kept that were registered in the object store and fetched."""
    return Path(torch.hub.get_dir()) / "kernelscope"


def trouble(file: Path) -> str:
    """What is wrong with a weights file, every number of it read; empty: nothing."""
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


def _kept(name: str) -> Iterator[tuple[Path, Source]]:
    """What comes with the program, then what was downloaded before."""
    for file in (WEIGHTS_FILE, *weights_files(BUNDLED)):
        if network_of(file) == name:
            yield file, "bundled"
    if name in PUBLISHED and cache_file(name).is_file():
        yield cache_file(name), "cache"
