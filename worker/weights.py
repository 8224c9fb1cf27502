"""Where a network's weights come from: the weights folder, else the program itself, else torchvision's download.

python -m worker.weights vgg16        finds or downloads them (with size and progress) and says what they are
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import urlsplit

import httpx
import torch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from safetensors import safe_open
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from shared.errors import KernelscopeError, ModelUnavailable
from shared.settings import settings
from worker.architectures import ARCHITECTURES, cuts
from worker.vgg_mini import WEIGHTS_FILE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = (".safetensors", ".pth", ".pt")
BUNDLED = Path(__file__).parent / "bundled"  # what the worker image's build argument WEIGHTS downloaded
STALLED_SECONDS = 30  # without a byte: a network that drops packets must not hang the worker

Source = Literal["folder", "bundled", "cache", "download"]


@dataclass(frozen=True)
class Weights:
    """The parameters of a network's convolutional part, or of the lower end of it."""

    file: Path
    source: Source
    sha256: str
    tensors: dict[str, Tensor]  # `features.…` → parameter
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: list[str]  # those that the tensors cover, from the input up without a gap


@dataclass(frozen=True)
class Found:
    """A weights file that is there, or that would be downloaded."""

    file: Path
    source: Source
    keys: frozenset[str] | None  # None: not known before it is downloaded
    megabytes: float

    @property
    def reason(self) -> str:
        """One phrase on where the weights are from."""
        return {
            "folder": f"{self.file.name} in the weights folder",
            "bundled": f"{self.file.name}, which comes with Kernelscope",
            "cache": f"torchvision's {self.file.name}, downloaded before",
            "download": f"torchvision's {self.file.name}, {self.megabytes:.0f} MB, downloaded on first use",
        }[self.source]


def find(name: str, folder: Path, *, download: bool) -> Found:
    """The best weights for a network: of several files in the folder, the one that covers most layers.

    Raises:
        ModelUnavailable: no weights; says why.
    """
    candidates = [_found(file, "folder") for file in sorted(folder.glob("*")) if _is_for(file, name)]
    usable = [found for found in candidates if covered(name, found.keys)]
    if usable:
        return max(usable, key=lambda found: len(covered(name, found.keys)))
    if candidates:
        files = ", ".join(found.file.name for found in candidates)
        raise ModelUnavailable(
            f"{files} in {folder}: damaged, or holds no parameters of {name} "
            f"(wanted: torchvision's names, such as features.0.weight, as safetensors or a weights-only .pth)"
        )
    if bundled := [file for file in (WEIGHTS_FILE, *sorted(BUNDLED.glob("*"))) if _is_for(file, name)]:
        return _found(bundled[0], "bundled")
    cached = _cache_file(name)
    if cached.is_file():
        return _found(cached, "cache")
    if not download:
        raise ModelUnavailable(
            f"no weights for {name}: none in {folder} (a file named {name}*.safetensors or {name}*.pth), "
            "and downloading is turned off"
        )
    return Found(cached, "download", None, _published(name).meta["_file_size"] * 1.048576)


def load(name: str, folder: Path, *, download: bool) -> Weights:
    """Read the weights; download them first where that is the only way.

    Raises:
        ModelUnavailable: no weights, a damaged file, or a download that failed; says which.
    """
    found = find(name, folder, download=download)
    if found.source == "download":
        fetch(name)
    tensors, metadata = _read(found.file)
    layers = covered(name, frozenset(tensors))
    if not layers:
        raise ModelUnavailable(f"{found.file} holds no parameters of {name}")
    return Weights(
        file=found.file,
        source=found.source,
        sha256=_sha256(found.file),
        tensors={key: tensor for key, tensor in tensors.items() if key.startswith("features.")},
        mean=_triple(metadata.get("normalization_mean"), IMAGENET_MEAN),
        std=_triple(metadata.get("normalization_std"), IMAGENET_STD),
        layers=layers,
    )


def trouble(file: Path) -> str:
    """What is wrong with a weights file; empty where it is whole, every parameter of it readable."""
    name = next((name for name in ARCHITECTURES if _is_for(file, name)), None)
    if name is None:
        return f"no network has this name; it should begin with one of {', '.join(ARCHITECTURES)}"
    try:
        tensors, _ = _read(file)
    except ModelUnavailable as error:
        return error.detail
    if not covered(name, frozenset(tensors)):
        return f"it holds no parameters of {name}"
    published = file.stem.removeprefix(f"{name}-")
    if re.fullmatch(r"[0-9a-f]{8}", published) and not _sha256(file).startswith(published):
        return f"it is not the file that its name says: SHA-256 {_sha256(file)[:8]}… instead of {published}…"
    return ""


def covered(name: str, keys: frozenset[str] | None) -> list[str]:
    """The layers whose every parameter, and every one below, is among the keys."""
    needed = _needed(name)
    return list(takewhile(lambda layer: keys is None or needed[layer] <= keys, needed))


@cache
def _needed(name: str) -> dict[str, frozenset[str]]:
    """The parameters that each layer needs, by layer, in order."""
    features = ARCHITECTURES[name].features()
    return {cut.name: frozenset(f"features.{key}" for key in cut.keys(features)) for cut in cuts(name).values()}


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


def _is_for(file: Path, name: str) -> bool:
    """`vgg16.pth`, `vgg16-397923af.pth`, `vgg16-blocks1-2.safetensors` are for vgg16; `vgg16_bn.pth` is not."""
    return file.suffix in SUFFIXES and file.name.removeprefix(name)[:1] in (".", "-") and file.name.startswith(name)


def _found(file: Path, source: Source) -> Found:
    return Found(file, source, _keys(file), file.stat().st_size / 1e6)


def _keys(file: Path) -> frozenset[str]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return frozenset(tensors.keys())
        return frozenset(torch.load(file, map_location="meta", weights_only=True, mmap=True))
    except Exception:  # whatever a damaged file makes the readers raise: it covers nothing
        return frozenset()


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                return {name: tensors.get_tensor(name) for name in names}, tensors.metadata() or {}
        return torch.load(file, map_location="cpu", weights_only=True), {}
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ModelUnavailable(f"{file} is damaged ({str(error)[:200] or type(error).__name__})") from error


def _triple(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if text is None:
        return default
    return tuple(float(part) for part in text.split(","))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    """Find or download the weights of the named networks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=list(ARCHITECTURES), metavar="NETWORK")
    options = parser.parse_args()
    status = 0
    for name in options.names:
        try:
            found = find(name, settings().weights, download=settings().download_weights)
            if found.source == "download":
                print(f"{name}: downloading {found.file.name}, {found.megabytes:.0f} MB", file=sys.stderr, flush=True)
            weights = load(name, settings().weights, download=settings().download_weights)
            print(f"{name}: {found.reason}; covers {weights.layers[0]} to {weights.layers[-1]}")
        except KernelscopeError as error:
            status = 1
            print(f"unavailable: {error}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what was downloaded by half is gone
        sys.exit(130)
