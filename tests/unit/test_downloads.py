"""Weights that are downloaded, or come with the image."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from shared.errors import ModelUnavailable
from tests.unit.weights_files import CPU, networks, whole
from worker.networks import download as download_module
from worker.networks import loaded as networks_module
from worker.networks import weights as weights_module
from worker.networks.architectures import ARCHITECTURES
from worker.networks.loaded import Networks
from worker.networks.weights import find, load


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server in the place of torchvision's; its files are in the returned folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        torch.save(whole("vgg11"), folder / "weights.pth")
        digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
        (folder / "weights.pth").rename(folder / f"vgg11-{digest}.pth")

        class Published:
            url = f"http://127.0.0.1:{server.server_port}/vgg11-{digest}.pth"
            meta: ClassVar[dict[str, Any]] = {"_file_size": 35.2}

        monkeypatch.setattr(download_module, "_published", lambda _: Published)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        yield folder
        server.shutdown()


def test_weights_that_an_image_brings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After those of the folder and before a download, by torchvision's file name."""
    brought = tmp_path / "bundled"
    brought.mkdir()
    monkeypatch.setattr(weights_module, "BUNDLED", brought)
    torch.save(whole("vgg11"), brought / "vgg11-8a719046.pth")
    found = find("vgg11", tmp_path, download=True)
    assert found.source == "bundled"
    assert load("vgg11", tmp_path, download=False).sha256
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    assert find("vgg11", tmp_path, download=True).source == "folder"
    assert find("vgg_mini", tmp_path, download=False).source == "bundled"


def test_weights_are_downloaded_checked_and_kept(
    published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The state announces a download, loading performs it with progress, and the second time the cache is used."""
    source = Networks(tmp_path, CPU, download=True)
    state = source.states()["vgg11"]
    assert state.available
    assert "37 MB, downloaded on first use" in state.reason
    assert list(source.get("vgg11").layers)[-1] == "conv5_2"
    assert "100%" in capfd.readouterr().err
    for file in published.iterdir():
        file.unlink()
    assert Networks(tmp_path, CPU, download=True).get("vgg11").reason.endswith("from torch's cache")


def test_a_damaged_download_is_refused_and_not_kept(published: Path, tmp_path: Path) -> None:
    """The hash in the file's name is checked; a partial file is not used later."""
    (file,) = published.iterdir()
    file.write_bytes(file.read_bytes()[:-1000] + b"\x00" * 1000)
    with pytest.raises(ModelUnavailable, match="downloaded file is damaged"):
        load("vgg11", tmp_path, download=True)
    assert list((tmp_path / "cache").rglob("*.pth")) == []


def test_a_download_that_fails_is_reported_and_not_tried_at_every_job(published: Path, tmp_path: Path) -> None:
    """Without such a file on the server the network is unavailable with the reason, at once the second time."""
    (file,) = published.iterdir()
    file.unlink()
    source = Networks(tmp_path, CPU, download=True)
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=r"download from 127\.0\.0\.1.*failed"):
            source.get("vgg11")
    assert "failed" in source.states()["vgg11"].reason


def test_a_download_that_trickles_keeps_nobody_else_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other networks can be loaded meanwhile, and all callers of the slow one get the same object."""
    trickling, arrived, loads = threading.Event(), threading.Event(), list[str]()
    state = tmp_path / "vgg11.safetensors"
    save_file(whole("vgg11"), state)

    def slowly(name: str, *arguments: Any, **options: Any) -> Any:
        loads.append(name)
        if name == "vgg11":
            trickling.set()
            assert arrived.wait(30)
        return load(name, *arguments, **options)

    monkeypatch.setattr(networks_module, "load", slowly)
    source = networks(tmp_path)
    got: list[object] = []
    waiting = [threading.Thread(target=lambda: got.append(source.get("vgg11"))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert trickling.wait(30)
    assert source.get("vgg_mini") is source.get("vgg_mini")
    assert not got
    arrived.set()
    for thread in waiting:
        thread.join(30)
    assert len(got) == 3
    assert set(map(id, got)) == {id(source.get("vgg11"))}
    assert loads == ["vgg11", "vgg_mini"]


def test_torchvision_still_publishes_every_network() -> None:
    """Each ImageNet network has a default entry with a URL whose name carries a hash, and a size."""
    for name in ARCHITECTURES:
        if name != "vgg_mini":
            entry = models.get_model_weights(name).DEFAULT
            assert entry.url.startswith("https://")
            assert len(entry.url.rsplit("-", 1)[-1].removesuffix(".pth")) in (8, 10)
            assert entry.meta["_file_size"] > 1
