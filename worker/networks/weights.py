"""Where a network's weights come from: the weights folder, else the program itself, else torchvision's download."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import urlsplit

import httpx
import torch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from torchvision.models import WeightsEnum, get_model_weights

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, cuts
from worker.networks.checkpoints import IMAGENET, Checkpoint, inspect, network_of, read, weights_files
from worker.networks.contents import Refused, sha256, version
from worker.networks.definitions import FILE, Definition, definitions
from worker.networks.registry import Entry, Registry
from worker.networks.vgg_mini import WEIGHTS_FILE

BUNDLED = Path(__file__).parent / "bundled"  # what the worker image's build argument WEIGHTS downloaded
STALLED_SECONDS = 30  # without a byte: a network that drops packets must not hang the worker

Source = Literal["folder", "store", "bundled", "cache", "download"]


@dataclass(frozen=True)
class Weights(Checkpoint):
    """A network's weights, and where they are from."""

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
    megabytes = _published(name).meta["_file_size"] * 1.048576
    return Found(_cache_file(name), "download", name, list(cuts(name)), IMAGENET, megabytes)


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
    return Found(file, source, name, checkpoint.layers, checkpoint.preprocessing)


def _registered(name: str, definition: Definition, folder: Path) -> Found:
    file = folder / definition.weights
    try:
        checkpoint = inspect(file, definition.arch)
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


def registered_for(file: Path) -> str | None:
    """The architecture that a file of the weights folder is registered for."""
    return next((one.arch for one in definitions(file.parent).networks.values() if one.weights == file.name), None)


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
    checkpoint = replace(read(found.file, found.architecture), preprocessing=found.preprocessing)
    digest = sha256(found.file)
    if version(found.file) != seen:
        raise Refused("it was written to while it was read")
    return Weights(**vars(checkpoint), file=found.file, source=found.source, sha256=digest, version=seen)


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
    cached = _cache_file(name)
    if cached.is_file():
        yield cached, "cache"


def fetch(name: str) -> Path:
    """Download torchvision's weights into torch's cache, with a progress bar on stderr, and check their hash.

    Raises:
        ModelUnavailable: with the reason.
    """
    url, file = _published(name).url, _cache_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            digest = _receive(url, part)
            if not digest.startswith(file.stem.rsplit("-", 1)[-1]):
                raise ModelUnavailable(f"no weights for {name}: the downloaded file is damaged (SHA-256 {digest})")
            part.replace(file)  # under its own name only when it is whole
    except (httpx.HTTPError, OSError) as error:
        host = urlsplit(url).netloc
        raise ModelUnavailable(f"no weights for {name}: the download from {host} failed ({error})") from error
    return file


def _receive(url: str, part: Path) -> str:
    """Write the body to the file, with a progress bar on stderr. Returns its SHA-256."""
    digest = hashlib.sha256()
    request = httpx.stream("GET", url, follow_redirects=True, timeout=STALLED_SECONDS)
    with request as response, part.open("wb") as file:
        response.raise_for_status()
        total = int(response.headers.get("content-length", 0)) or None
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("downloading", total=total)
            for chunk in response.iter_raw():
                file.write(chunk)
                digest.update(chunk)
                bar.advance(task, len(chunk))
    return digest.hexdigest()


def _published(name: str) -> WeightsEnum:
    return get_model_weights(name).DEFAULT


def _cache_file(name: str) -> Path:
    url: str = _published(name).url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
