"""A network whose weights cannot be had: a few attempts with pauses between them, then its jobs fail and say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from redis import Redis

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.jobs import Transitions
from shared.schemas import ExplainRequest, Status, plan
from shared.workers import NetworkState, WorkerState
from tests.conftest import records_of
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
    monkeypatch.setattr(download_module, "_address", lambda _: "http://127.0.0.1:1/vgg11-8a719046.pth")
    return attempts


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
    own = {"features.0.weight": torch.ones(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    torch.save(own, tmp_path / "vgg11.pth")
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
        own = {"features.0.weight": torch.ones(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
        torch.save(own, download_module.cache_file(name))
        return download_module.cache_file(name)

    monkeypatch.setattr("worker.networks.weights.fetch", succeeding)
    clock.now += 301
    assert try_again(networks).available
    assert networks._failures.due(0) == []


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


NO_DOWNLOAD = NetworkState(available=False, reason="no weights for vgg19: none in the folder")
TEMPORARY = NetworkState(available=False, reason="no weights for vgg19: the download failed", failure="temporary")
FINAL = TEMPORARY.model_copy(update={"failure": "final"})
HAS_IT = NetworkState(available=True, reason="vgg19.pth in the weights folder", layers=["conv5_1"])


def workers(*states: NetworkState) -> list[WorkerState]:
    """A worker for each state of VGG-19."""
    return [
        WorkerState(id=str(number), device="cpu", started_at=0.0, ready=True, networks={"vgg19": state})
        for number, state in enumerate(states)
    ]


def submit(transitions: Transitions, name: str, **fields: object) -> None:
    """A job of two slices."""
    asked = {"images": ["0" * 64], "model": "vgg19", "layer": "conv5_1", "kernels": list(range(20)), **fields}
    request = ExplainRequest.model_validate(asked)
    transitions.submit(name, request, plan(request, 20_000), 2e9)


@pytest.mark.parametrize(
    "states",
    [[], [NO_DOWNLOAD], [TEMPORARY], [FINAL, TEMPORARY], [FINAL, HAS_IT]],
    ids=["no worker", "no download", "paused", "another tries", "another has it"],
)
def test_a_job_waits_while_a_worker_may_have_its_network(redis: Redis, states: list[NetworkState]) -> None:
    """Nothing fails while another worker has it or will try again, or where nobody has tried."""
    transitions = Transitions(redis)
    submit(transitions, "j")
    assert transitions.fail_unloadable(workers(*states)) == []
    assert transitions.queued() == ["j:0", "j:1"]


def test_a_job_whose_network_cannot_be_loaded_fails_and_says_why(redis: Redis) -> None:
    """All of its items, and those of other jobs for it, also by rank; jobs for other networks still wait."""
    transitions, records = Transitions(redis), records_of(redis)
    submit(transitions, "j")
    submit(transitions, "ranks", kernels="top:2")
    submit(transitions, "another", model="vgg16")
    submit(transitions, "suspected")
    claim = transitions.claim("suspected:0")
    assert claim
    redis.hset("ks:slice:suspected:0", "strikes", 1)
    transitions.release(claim)
    failed = transitions.fail_unloadable(workers(FINAL, NO_DOWNLOAD))
    assert sorted(failed) == ["j:0", "j:1", "ranks:0", "suspected:0", "suspected:1"]
    assert transitions.queued() == ["another:0", "another:1"]
    for name, items in (("j", 20), ("ranks", 2)):
        job = records.whole(name)
        assert (job.status, job.failed_items) == (Status.FAILED, items)
        for result in job.results:
            assert result.error
            assert result.error.type.endswith("/problems/model-unavailable")
            assert result.error.detail == "vgg19 cannot be explained: no weights for vgg19: the download failed"


def test_a_job_says_that_its_network_is_tried_again(redis: Redis) -> None:
    """In `waiting_for`, with the reason of the failure."""
    transitions = Transitions(redis)
    submit(transitions, "j")
    transitions.note_unmet_needs(workers(NO_DOWNLOAD, TEMPORARY))
    assert records_of(redis).job("j").waiting_for == (
        "vgg19, which a worker will try to load again: no weights for vgg19: the download failed"
    )
