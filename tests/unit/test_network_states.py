"""What is said of networks whose weights are missing, damaged, replaced or mended."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import ModelUnavailable
from shared.settings import settings
from tests.unit.weights_files import PUBLISHED, broken, networks, put, whole
from worker.networks import loaded as networks_module
from worker.networks.weights import load, refused


def test_a_file_that_does_not_change_is_looked_into_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read for every heartbeat, even if damaged; a replaced file is inspected again."""
    seen: list[str] = []
    original = torch.load

    def counted(file: Path, **options: Any) -> Any:
        seen.append(file.name)
        return original(file, **options)

    monkeypatch.setattr(torch, "load", counted)
    put(folder / "vgg11.pth", "vgg11", old=True)
    (folder / "vgg13.pth").write_bytes(b"\x00" * 100)
    source = networks(folder)
    for _ in range(3):
        source.states()
    assert sorted(seen) == ["vgg11.pth", "vgg13.pth"]
    put(folder / "vgg13.pth", "vgg13", old=True)
    assert source.states()["vgg13"].available
    assert sorted(seen) == ["vgg11.pth", "vgg13.pth", "vgg13.pth"]


def test_a_damaged_file_in_the_cache_is_reported(folder: Path, cache: Path) -> None:
    """As unavailable, and not as a network without layers."""
    put(cache / PUBLISHED, "squeezenet1_1", old=True)
    data = (cache / PUBLISHED).read_bytes()
    (cache / PUBLISHED).write_bytes(data[:-10])
    state = networks(folder, download=True).states()["squeezenet1_1"]
    assert not state.available
    assert f"{PUBLISHED}: damaged" in state.reason


def test_a_file_that_is_mended_is_used_without_a_restart(folder: Path) -> None:
    """At once, whether it was refused or could not be loaded."""
    put(folder / "vgg11_mine.pth", "vgg11", until=0)
    source = networks(folder)
    with pytest.raises(ModelUnavailable, match=r"name it vgg11-mine\.pth"):
        source.get("vgg11")
    (folder / "vgg11_mine.pth").rename(folder / "vgg11-mine.pth")
    assert source.states()["vgg11"].available
    assert list(source.get("vgg11").layers) == ["conv1_1"]
    torch.save(broken(features__0__bias=torch.full((64,), torch.nan)), folder / "vgg13.pth")
    with pytest.raises(ModelUnavailable, match="NaN"):
        source.get("vgg13")
    assert "NaN" in source.states()["vgg13"].reason
    put(folder / "vgg13.pth", "vgg13", until=0)
    assert source.states()["vgg13"].available
    assert list(source.get("vgg13").layers) == ["conv1_1"]


@pytest.fixture
def environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings of a worker with that weights folder."""
    monkeypatch.setenv("KERNELSCOPE_WEIGHTS_DIR", str(folder))
    monkeypatch.setenv("KERNELSCOPE_DATA_DIR", str(folder.parent))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.usefixtures("environment")
def test_the_command_says_what_the_worker_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m worker.weights` prints refusals, and files that are not used."""
    put(folder / "vgg16.pth", "vgg16_bn")
    put(folder / "vgg11.pth", "vgg11")
    (folder / "vgg11_x.pth").write_bytes(b"")
    (folder / "mine.pt").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["weights", "vgg16", "vgg11"])
    monkeypatch.delitem(sys.modules, "worker.weights", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("worker.weights", run_name="__main__")
    assert ended.value.code == 1
    reasons = {file.name: reason for file, reason in refused(folder).items()}
    assert set(reasons) == {"vgg16.pth", "vgg11_x.pth", "mine.pt"}
    assert capsys.readouterr().out.splitlines() == [
        f"unavailable: no weights for vgg16: none that can be used in {folder}: vgg16.pth: {reasons['vgg16.pth']}",
        "vgg11: vgg11.pth in the weights folder; covers conv1_1 to conv5_2",
        f"not used: mine.pt: {reasons['mine.pt']}",
        f"not used: vgg11_x.pth: {reasons['vgg11_x.pth']}",
    ]


def test_damaged_and_misfitting_files_make_the_model_unavailable(tmp_path: Path) -> None:
    """Each with a reason, which is also in the state that the API shows; nothing else is affected."""
    (tmp_path / "vgg11.safetensors").write_bytes(b"\x00" * 100)
    wrong = {key: torch.zeros(1, *tensor.shape[1:]) for key, tensor in whole("vgg13").items()}
    save_file(wrong, tmp_path / "vgg13.safetensors")
    source = networks(tmp_path)
    assert "damaged" in source.states()["vgg11"].reason
    with pytest.raises(ModelUnavailable, match="does not fit vgg13"):
        source.get("vgg13")
    states = source.states()
    assert not states["vgg11"].available
    assert not states["vgg13"].available
    assert states["vgg_mini"].available


def test_without_any_file_the_reason_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says where the file should be, and that downloads are disabled."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = networks(tmp_path / "nowhere").states()["vgg16"]
    assert not state.available
    assert "nowhere" in state.reason
    assert "vgg16.pth" in state.reason
    assert "downloading is turned off" in state.reason


def test_what_nobody_foresaw_in_a_weights_file_makes_that_network_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, also in the heartbeat; the others can be used."""
    save_file(whole("vgg11"), tmp_path / "vgg11.safetensors")
    source = networks(tmp_path)

    def strange(name: str, *_: Any, **__: Any) -> Any:
        if name == "vgg11":
            raise RuntimeError("a tensor that is none")
        return load(name, tmp_path, download=False)

    monkeypatch.setattr(networks_module, "load", strange)
    with pytest.raises(ModelUnavailable, match="a tensor that is none"):
        source.get("vgg11")
    assert "a tensor that is none" in source.states()["vgg11"].reason
    assert source.get("vgg_mini").layers
