"""Downloads torchvision's published weights into torch's cache."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx
import torch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from torchvision.models import WeightsEnum, get_model_weights

from shared.errors import ModelUnavailable

STALLED_SECONDS = 30  # without a byte, after which the download fails


def fetch(name: str) -> Path:
    """Download torchvision's weights into torch's cache, with a progress bar on stderr, and check their hash.

    Raises:
        ModelUnavailable: the download failed or is damaged.
    """
    url, file = _address(name), cache_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            digest = _receive(url, part)
            if not digest.startswith(file.stem.rsplit("-", 1)[-1]):
                raise ModelUnavailable(f"no weights for {name}: the downloaded file is damaged (SHA-256 {digest})")
            part.replace(file)  # renamed only when it is complete
    except (httpx.HTTPError, OSError) as error:
        reason = f"the download from {urlsplit(url).netloc} failed ({error or type(error).__name__})"
        remedy = f"put {name}.pth or {name}.safetensors into the worker's weights folder, or use model=vgg_mini"
        raise ModelUnavailable(f"no weights for {name}: {reason}; {remedy}") from error
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


def megabytes(name: str) -> float:
    """The size of the download in MB."""
    size: float = _published(name).meta["_file_size"]
    return size * 1.048576


def _address(name: str) -> str:
    url: str = _published(name).url
    return url


@cache
def _published(name: str) -> WeightsEnum:
    return get_model_weights(name).DEFAULT


def cache_file(name: str) -> Path:
    """The path in torch's cache, whether the file exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _address(name).rsplit("/", 1)[-1]
