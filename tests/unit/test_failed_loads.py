"""A network whose weights cannot be had: attempts to load it, with pauses between them."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.workers import NetworkState
from worker.networks import download as download_module
from worker.networks import failures as failures_module
from worker.networks import loaded as networks_module
from worker.networks.loaded import Networks


class Time:
    """A monotonic clock that a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock of the pauses between attempts."""
    time = Time()
    monkeypatch.setattr(failures_module, "time", time)
    return time


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A server of weights that refuses connections; the list has the downloads that were attempted."""
    attempts: list[str] = []
    receive = download_module._receive

    def counted(url: str, part: Path) -> str:
        attempts.append(url)
        return receive(url, part)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "_receive", counted)
    monkeypatch.setattr(download_module, "_address", "http://127.0.0.1:1/{}-8a719046.pth".format)
    return attempts


def first_layer(value: float = 1.0) -> dict[str, Tensor]:
    """Parameters of VGG-11's first layer."""
    return {"features.0.weight": torch.full((64, 3, 3, 3), value), "features.0.bias": torch.zeros(64)}


def try_again(networks: Networks) -> NetworkState:
    """What a heartbeat does; the state after the attempt that it started, if any."""
    networks.retry()
    for loading in list(networks._loading.values()):
        loading.exception(10)
    return networks.states()["vgg11"]


def test_a_download_that_fails_is_tried_three_times_with_pauses(
    unreachable: list[str], clock: Time, tmp_path: Path
) -> None:
    """Not at every heartbeat; then every five minutes. The state has the reason, and what would help."""
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable, match=r"the download from 127\.0\.0\.1:1 failed \(.+\)"):
        networks.get("vgg11")
    found = []
    for second in range(400):
        clock.now = 1000.5 + second
        before = len(unreachable)
        state = try_again(networks)
        if len(unreachable) > before:
            found.append((second, state.failure))
        assert not state.available
        assert "put vgg11.pth or vgg11.safetensors into the worker's weights folder" in state.reason
        assert "model=vgg_mini" in state.reason
    assert [second for second, _ in found] == [10, 40, 340]
    assert [kind for _, kind in found] == ["temporary", "final", "final"]
    assert state.reason.endswith("(4 attempts failed)")


def test_a_file_in_the_folder_ends_the_wait(unreachable: list[str], clock: Time, tmp_path: Path) -> None:
    """As the reason advises: it is found at once, without another download."""
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable):
        networks.get("vgg11")
    torch.save(first_layer(), tmp_path / "vgg11.pth")
    state = try_again(networks)
    assert (state.available, state.failure) == (True, None)
    assert list(networks.get("vgg11").layers) == ["conv1_1"]
    clock.now += 1000
    assert try_again(networks).available
    assert len(unreachable) == 1


def test_a_later_attempt_that_succeeds_makes_the_network_available(
    unreachable: list[str], clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after it was given up."""
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable):
        networks.get("vgg11")
    for _ in range(3):
        clock.now += 301
        assert try_again(networks).failure
    assert len(unreachable) == 4

    def succeeding(name: str) -> Path:
        torch.save(first_layer(), download_module.cache_file(name))
        return download_module.cache_file(name)

    monkeypatch.setattr("worker.networks.weights.fetch", succeeding)
    clock.now += 301
    assert try_again(networks).available
    assert networks._failures.due(0) == []


def test_a_file_that_was_downloaded_by_the_attempt_itself_does_not_hide_its_failure(
    unreachable: list[str], clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the download there was no file, afterwards there is one; the network is not available for all that."""

    def fetched(name: str) -> Path:
        torch.save({"features.0.weight": torch.full((64, 3, 3, 3), torch.nan)}, download_module.cache_file(name))
        return download_module.cache_file(name)

    monkeypatch.setattr("worker.networks.weights.fetch", fetched)
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable):
        networks.get("vgg11")
    assert networks.states()["vgg11"].failure == "temporary"
    assert networks._failures.due(300) == []


def test_an_outage_of_the_store_does_not_count(clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network may be in it: jobs wait for the store, as they do otherwise."""

    def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("the object store does not respond")

    monkeypatch.setattr(networks_module, "load", down)
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable, match="does not respond"):
        networks.get("vgg11")
    for _ in range(5):
        clock.now += 11
        assert try_again(networks).failure == "temporary"


def test_another_file_of_the_same_name_ends_the_wait(clock: Time, tmp_path: Path) -> None:
    """The first one cannot be used; a good one replaces it. It is found at once, and attempts are counted anew."""
    networks, file = Networks(tmp_path, torch.device("cpu"), download=False), tmp_path / "vgg11.pth"
    torch.save(first_layer(float("nan")), file)
    for _ in range(4):
        with pytest.raises(ModelUnavailable, match="vgg11"):
            networks.get("vgg11")
        clock.now += 301
    assert try_again(networks).failure == "final"
    torch.save(first_layer(), file)
    state = networks.states()["vgg11"]
    assert (state.available, state.failure) == (True, None)
    assert networks.get("vgg11").weights.source == "vgg11.pth"


def test_a_file_in_the_cache_of_torch_ends_the_wait(unreachable: list[str], clock: Time, tmp_path: Path) -> None:
    """Put there by hand, after the download failed."""
    networks = Networks(tmp_path, torch.device("cpu"), download=True)
    with pytest.raises(ModelUnavailable):
        networks.get("vgg11")
    torch.save(first_layer(), download_module.cache_file("vgg11"))
    assert networks.states()["vgg11"].available
    assert list(networks.get("vgg11").layers) == ["conv1_1"]
    assert len(unreachable) == 1


def test_an_attempt_that_runs_is_not_given_up(
    unreachable: list[str], clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow download that goes well, after three that failed: jobs wait for it."""
    networks, begun, go_on = Networks(tmp_path, torch.device("cpu"), download=True), Event(), Event()
    with pytest.raises(ModelUnavailable):
        networks.get("vgg11")
    for _ in range(2):
        clock.now += 301
        state = try_again(networks)
    assert (state.failure, len(unreachable)) == ("final", 3)

    def slow(name: str) -> Path:
        begun.set()
        assert go_on.wait(20)
        torch.save(first_layer(), download_module.cache_file(name))
        return download_module.cache_file(name)

    monkeypatch.setattr("worker.networks.weights.fetch", slow)
    clock.now += 301
    networks.retry()
    assert begun.wait(20)
    state = networks.states()["vgg11"]
    assert (state.available, state.failure) == (False, "temporary")
    assert state.reason.endswith("(3 attempts failed)")
    go_on.set()
    assert try_again(networks).available


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 392.00 MiB"), RuntimeError("can't allocate memory")],
)
def test_after_a_lack_of_memory_the_next_attempt_is_later(
    clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Other work on the card may need it for a while; a network that never fits is given up."""
    torch.save(first_layer(), tmp_path / "vgg11.pth")
    networks = Networks(tmp_path, torch.device("cpu"), download=False)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(networks, "_build", full)
        with pytest.raises(ModelUnavailable, match=f"vgg11 does not fit into memory now: {error}"):
            networks.get("vgg11")
        kinds = []
        for _ in range(4):
            clock.now += 31
            kinds.append(try_again(networks).failure)
        assert kinds == ["temporary"] * 3 + ["final"]
    clock.now += 301
    assert try_again(networks).available
