"""Networks in the object store: registered by a command, fetched by workers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import ModelUnavailable, StoreUnavailable
from shared.settings import settings
from shared.store import BlobStore
from worker.networks import register, registry
from worker.networks.loaded import Networks
from worker.networks.registry import Registry
from worker.networks.vgg_mini import WEIGHTS_FILE

CPU = torch.device("cpu")


class Lab:
    """A store, an operator's folder, and workers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.store = BlobStore((folder / "store").as_uri())
        self.capsys = capsys
        self._patch = monkeypatch
        shutil.copy(WEIGHTS_FILE, folder / "mine.safetensors")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(registry, "REFRESH_SECONDS", 0.0)
        own = {"STORE_URL": (folder / "store").as_uri(), "WEIGHTS_DIR": str(folder / "weights")}
        for name, value in own.items():
            monkeypatch.setenv(f"KERNELSCOPE_{name}", value)
        settings.cache_clear()

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the command. Returns its exit code and output."""
        self._patch.setattr(sys, "argv", ["register", *arguments])
        code = register.main()
        return code, "".join(self.capsys.readouterr())

    def add(self, name: str = "mine", *options: str, weights: str = "mine.safetensors") -> tuple[int, str]:
        """Register a file."""
        return self.run("add", name, "--arch", "vgg_mini", "--weights", weights, *options)

    def worker(self, name: str) -> Networks:
        """The networks of a worker on a machine of this name."""
        return Networks(self.folder / "weights", CPU, Registry(self.store, self.folder / name), download=False)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The test's own store."""
    yield Lab(tmp_path, monkeypatch, capsys)
    settings.cache_clear()


def test_every_worker_finds_it_those_that_come_later_too(lab: Lab) -> None:
    """Its layers are known before it is fetched; the file is fetched once, and is the registered one."""
    early = lab.worker("early")
    assert early.registered() == []
    code, said = lab.add("mine", "--title", "Mine")
    assert code == 0
    assert "covers conv1_1 to conv4_2, fed RGB from 0 to 1, mean 0.5 0.5 0.5" in said
    for machine in (early, lab.worker("late")):
        machine.registered()
        state = machine.states()["mine"]
        assert (state.available, state.source, state.layers[-1]) == (True, "mine.safetensors", "conv4_2")
        assert "registered in the object store, 1 MB" in state.reason
        assert [(one.name, one.title, one.architecture) for one in machine.registered()] == [
            ("mine", "Mine", "vgg_mini")
        ]
        assert machine.get("mine").weights.source == "mine.safetensors"
        assert machine.states()["mine"].sha256 == machine.get("mine").weights.sha256
    lab.store.forget_note(f"networks/weights/{early.get('mine').weights.sha256}")
    assert lab.worker("early").get("mine").layers.keys() == early.get("mine").layers.keys()  # after a restart
    with pytest.raises(ModelUnavailable, match=r"mine\.safetensors in the object store is missing; register it again"):
        lab.worker("third").get("mine")


def test_a_file_that_was_changed_in_the_store_is_not_used(lab: Lab) -> None:
    """A file with another SHA-256 is refused."""
    lab.add()
    (blob,) = (lab.folder / "store" / "networks" / "weights").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelUnavailable, match=r"has SHA-256 .* instead of"):
        lab.worker("w").get("mine")


def test_replaced_and_removed(lab: Lab) -> None:
    """A name is not replaced by mistake; a worker with the old network restarts, or loses it."""
    lab.add()
    worker = lab.worker("w")
    first = worker.get("mine").weights
    state = load_file(WEIGHTS_FILE)
    save_file({key: tensor * 0.5 for key, tensor in state.items()}, "other.safetensors")
    reported = "mine is registered already, as vgg_mini with mine.safetensors; --replace replaces it\n"
    assert lab.add(weights="other.safetensors") == (1, f"mine is not registered: {reported}")
    assert worker.get("mine").weights == first
    assert lab.add("mine", "--replace", weights="other.safetensors")[0] == 0
    worker.registered()  # as each heartbeat asks for them
    assert worker.outdated() == ["mine"]
    assert worker.get("mine").weights == first
    worker = lab.worker("w")
    worker.registered()
    assert worker.get("mine").weights.source == "other.safetensors"
    lab.add("second", weights="other.safetensors")
    assert lab.run("remove", "mine")[0] == 0
    worker.registered()
    assert "mine" not in worker.states()
    with pytest.raises(ModelUnavailable, match="no network of this name is registered"):
        lab.worker("w").get("mine")
    assert worker.get("second").weights.source == "other.safetensors"  # the same file
    assert lab.run("remove", "second")[0] == 0
    assert lab.run("remove", "second") == (1, "no network second is registered in the object store\n")


def test_a_name_that_is_in_the_weights_folder_too(lab: Lab) -> None:
    """The command refuses it; if it is registered there later, the network is unavailable."""
    text = '[mine]\narch = "vgg_mini"\nweights = "mine.safetensors"\n'
    (lab.folder / "weights").mkdir()
    lab.add()
    (lab.folder / "weights" / "networks.toml").write_text(text)
    worker = lab.worker("w")
    worker.registered()
    assert "it is registered twice, in" in worker.states()["mine"].reason
    lab.run("remove", "mine")
    code, said = lab.add()
    assert (code, "networks.toml already; choose another name" in said) == (1, True)


def test_a_store_that_is_away_takes_nothing_from_who_knows(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached entries remain; a network that was not fetched is unavailable."""
    lab.add()
    worker = lab.worker("w")
    worker.registered()

    def away(*_: Any) -> Any:
        raise StoreUnavailable("the object store reported nothing (refused)")

    monkeypatch.setattr(BlobStore, "names", away)
    monkeypatch.setattr(BlobStore, "fetch", away)
    assert [one.name for one in worker.registered()] == ["mine"]
    assert worker.states()["mine"].available
    with pytest.raises(ModelUnavailable, match="the object store reported nothing"):
        worker.get("mine")
    assert not worker.states()["mine"].available  # for ten seconds: slices that want it are handed back


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (("--mean", "1,2"), "mean and std belong together"),
        (("--mean", "a,b,c", "--std", "1,1,1"), "mean.0: Input should be a valid number"),
        (("--order", "bgr"), "a range or an order needs mean and std"),
        (("--order", "grb", "--mean", "1,1,1", "--std", "1,1,1"), "order: Input should be 'rgb' or 'bgr'"),
    ],
)
def test_invalid_definitions_are_refused(lab: Lab, options: tuple[str, ...], reported: str) -> None:
    """Nothing is stored."""
    code, said = lab.add("mine", *options)
    assert (code, said.startswith("mine is not registered: ")) == (1, True)
    assert reported in said
    assert not (lab.folder / "store" / "networks").exists()


def test_files_that_cannot_be_used_are_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, another architecture, truncated, too large, missing: nothing is stored."""
    state = load_file(WEIGHTS_FILE)
    save_file({**state, "features.0.bias": torch.full((16,), torch.nan)}, "nan.safetensors")
    save_file({**state, "features.0.bias": torch.zeros(3)}, "shape.safetensors")
    data = Path("mine.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(data[:-1000])
    with Path("large.safetensors").open("wb") as file:
        file.truncate(10_000_000_000)  # takes no room
    for name, reported in {
        "nan": "features.0.bias holds NaN or infinity",
        "shape": "does not fit vgg_mini: features.0.bias is 3, not",
        "short": "damaged",
        "large": "is 10.0 GB; files above 4 GB are not read",
        "missing": "cannot be read (No such file or directory)",
    }.items():
        code, said = lab.add(weights=f"{name}.safetensors")
        assert (code, f"{name}.safetensors: {reported}" in said) == (1, True), said
    assert not (lab.folder / "store" / "networks").exists()
    os.truncate("large.safetensors", 0)


def test_what_others_have_put_there_is_passed_over(lab: Lab) -> None:
    """An architecture's name, a path that leads elsewhere, arbitrary text: the other entries are used."""
    lab.add()
    good = lab.store.noted("networks/mine.json") or ""
    for name, text in {
        "vgg16": good,
        "Bad name": good,
        "path": good.replace('"sha256":"', '"sha256":"../'),
        "old": "{}",
    }.items():
        lab.store.note(f"networks/{name}.json", text)
    (lab.folder / "store" / "networks" / "latin.json").write_bytes(b"\xe9")
    assert [one.name for one in lab.worker("w").registered()] == ["mine"]
    assert "in a format that this version cannot read" in lab.add("old")[1]
    assert lab.run("remove", "old")[0] == 0
    assert lab.store.noted("networks/old.json") is None
    assert lab.add("a.json")[0] == 0
    assert [one.name for one in lab.worker("w").registered()] == ["a.json", "mine"]
