"""`kernelscope doctor` finds what is wrong, and says how to repair it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from api.services import READINESS_SECONDS
from kernelscope import doctor, localredis
from kernelscope.stack import Stack, free_port
from shared.jobs import connect
from shared.settings import Settings
from tests.chaos.conftest import Plant, until
from tests.conftest import own_redis

Findings = dict[str, list[dict[str, Any]]]
Asking = Callable[..., Findings]


@pytest.fixture
def ask(tmp_path: Path) -> Asking:
    """Runs the doctor on a machine of the test's own; its findings by check."""

    def asked(*options: str, code: int = 1, **environment: str) -> Findings:
        own = {
            "KERNELSCOPE_DATA_DIR": str(tmp_path / "data"),
            "KERNELSCOPE_PRELOAD": "vgg_mini",
            "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false",
            "KERNELSCOPE_PORT": str(free_port()),
            "HTTP_PROXY": "http://127.0.0.1:9",  # which must not come between this machine and itself
            "NO_PROXY": "",
            **environment,
        }
        command = [sys.executable, "-m", "kernelscope", "doctor", "--json", *options]
        ran = subprocess.run(
            command, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert ran.stderr == ""
        assert ran.returncode == code, ran.stdout
        found: Findings = {}
        for finding in json.loads(ran.stdout):
            found.setdefault(finding["check"], []).append(finding)
        return found

    return asked


def wrong(found: Findings, check: str, *texts: str) -> None:
    """It is a problem, reported with these words, and there is a way to repair it."""
    (finding,) = [one for one in found[check] if one["state"] == "problem"]
    assert all(text in finding["found"] for text in texts), finding
    assert finding["mend"]


def test_a_healthy_machine(ask: Asking) -> None:
    """Nothing is wrong; every check is listed."""
    found = ask(code=0)
    assert {"settings", "Python", "Redis", "data folder", "disk", "memory", "port", "torch", "GPU", "weights"} <= set(
        found
    )


def test_a_port_and_a_folder(ask: Asking, tmp_path: Path) -> None:
    """A program that is not ours listens there, and a file is where the data should be."""
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        found = ask("--port", port, KERNELSCOPE_DATA_DIR=str(tmp_path / "file" / "data"))
    wrong(found, "port", port)
    wrong(found, "data folder", "file")


def test_a_redis_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on PATH nor in a wheel."""
    monkeypatch.setattr(localredis.shutil, "which", lambda *_, **__: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(localredis, "find_spec", lambda _: None)
    finding = doctor._redis(Path())
    assert finding.state == "problem"
    assert "apt install redis-server" in finding.mend


def test_weights_that_are_missing(ask: Asking) -> None:
    """And may not be downloaded; or may, where a setting is misspelt too."""
    wrong(ask(KERNELSCOPE_PRELOAD="vgg16"), "weights", "no weights for vgg16")
    able = {"KERNELSCOPE_DOWNLOAD_WEIGHTS": "true", "TORCH_HOME": "/nowhere"}
    found = ask(code=0, KERNELSCOPE_PRELOAD="vgg16", KERNELSCOPE_ACESS="keys", **able)
    assert "downloaded on first use" in found["weights"][0]["found"]
    assert found["settings"][0]["state"] == "warning"  # a misspelt one is no failure
    assert "did you mean KERNELSCOPE_ACCESS?" in found["settings"][0]["found"]


def test_weights_that_are_damaged(ask: Asking, tmp_path: Path) -> None:
    """A truncated file, another kind of file, one that is not what its name says, one of no network, a broken link."""
    folder = tmp_path / "weights"
    folder.mkdir()
    whole = Path(doctor.__file__).parents[1] / "worker" / "networks" / "vgg_mini" / "vgg_mini.safetensors"
    data = whole.read_bytes()
    (folder / "vgg_mini.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "vgg19.pth").write_text("something else")
    (folder / "vgg_mini-01234567.safetensors").write_bytes(data)
    (folder / "mine.safetensors").write_bytes(data)
    (folder / "vgg11.pth").symlink_to("/nowhere/vgg11.pth")
    found = ask(KERNELSCOPE_WEIGHTS_DIR=str(folder))
    found_wrong = {
        one["found"].partition(":")[0]: one["found"] for one in found["weights"] if one["state"] == "problem"
    }
    assert "damaged" in found_wrong["vgg_mini.safetensors"]
    assert "damaged" in found_wrong["vgg19.pth"]
    assert "instead of 01234567" in found_wrong["vgg_mini-01234567.safetensors"]
    assert "no network has this name" in found_wrong["mine.safetensors"]
    assert "cannot be read (No such file or directory)" in found_wrong["vgg11.pth"]


def test_a_gpu_of_apple_s_is_used_where_it_is_named() -> None:
    """`auto` is the CPU there."""
    finding = doctor._card({"cards": [], "mps": True})
    assert finding.state == "ok"
    assert "KERNELSCOPE_DEVICE is mps" in finding.found


def test_weights_that_are_not_what_their_name_says(ask: Asking, tmp_path: Path) -> None:
    """A network's name without - or . behind it, another network's parameters, a normalisation that cannot be."""
    folder = tmp_path / "weights"
    folder.mkdir()
    bundled = Path(doctor.__file__).parents[1] / "worker" / "networks" / "vgg_mini" / "vgg_mini.safetensors"
    shutil.copy(bundled, folder / "vgg11.safetensors")
    (folder / "vgg16_finetuned.pth").write_bytes(b"")
    save_file(load_file(bundled), folder / "vgg_mini.safetensors", {"normalization_std": "0,0,0"})
    found = ask(KERNELSCOPE_WEIGHTS_DIR=str(folder), KERNELSCOPE_PRELOAD="vgg11,vgg16,vgg_mini")
    found_wrong = [one["found"] for one in found["weights"]]
    assert all(one["state"] == "problem" and one["mend"] for one in found["weights"])
    for name, file, text in (
        ("vgg11", "vgg11.safetensors", "this file is vgg_mini's, not vgg11's"),
        ("vgg16", "vgg16_finetuned.pth", "name it vgg16-finetuned.pth to use it as vgg16"),
        ("vgg_mini", "vgg_mini.safetensors", "normalization_std in its metadata is 0,0,0"),
    ):
        (of_file,) = [one for one in found_wrong if one.startswith(f"{file}: ")]
        (of_network,) = [one for one in found_wrong if one.startswith(f"no weights for {name}: ")]
        assert text in of_file
        assert of_network.endswith(of_file)


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A problem below 1 GB, a warning below 5."""
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil's
    states = {0.5e9: "problem", 3e9: "warning", 50e9: "ok"}
    for free, state in states.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(100e9, 100e9 - free, free))
        finding = doctor._disk(tmp_path / "not" / "there" / "yet")
        assert finding.state == state
        assert bool(finding.mend) == (state != "ok")


def test_a_torch_that_does_not_fit_its_torchvision(ask: Asking, tmp_path: Path) -> None:
    """As pip leaves them when one of the two is replaced."""
    fake = tmp_path / "fake" / "torchvision"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    wrong(ask(PYTHONPATH=str(fake.parent)), "torch", "operator torchvision::nms does not exist")


def test_a_setting_that_cannot_be_used(ask: Asking) -> None:
    """By its name."""
    wrong(ask(KERNELSCOPE_LEASE_SECONDS="soon"), "settings", "KERNELSCOPE_LEASE_SECONDS")


def test_what_a_server_warns_of(settings: Settings, tmp_path: Path) -> None:
    """The doctor passes it on; a Redis that may remove jobs is a problem."""
    from tests.api.conftest import serving

    with (
        own_redis(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru") as url,
        serving(settings.model_copy(update={"redis_url": SecretStr(url)})) as client,
        connect(url) as redis,
    ):
        found = [one for one in doctor._server(str(client.base_url), None) if one.state == "warning"]
        assert "volatile-lru" in found[0].found
        redis.config_set("maxmemory-policy", "allkeys-lru")
        time.sleep(1.2 * READINESS_SECONDS)
        (problem,) = doctor._server(str(client.base_url), None)
        assert problem.state == "problem"
        assert "set maxmemory-policy to noeviction" in problem.found


def test_a_stack_that_runs_is_found_by_its_lock(ask: Asking, stack: Stack) -> None:
    """And asked how it is, wherever it listens."""
    found = ask(code=0, KERNELSCOPE_DATA_DIR=str(stack.settings.data_dir))
    assert stack.url in found["stack"][0]["found"]
    assert found["server"][0]["state"] == found["workers"][0]["state"] == "ok"
    assert "port" not in found


def test_a_server_that_is_not_there(ask: Asking) -> None:
    """Named by its address."""
    wrong(ask("--url", f"http://127.0.0.1:{free_port()}"), "server", "does not answer")


@pytest.mark.slow
def test_a_worker_that_died(ask: Asking, tmp_path: Path) -> None:
    """Killed and not restarted; then Redis is killed too."""
    folder = tmp_path / "plant"
    folder.mkdir()
    plant = Plant(folder, KERNELSCOPE_ENGINE="dummy")
    try:
        plant.start_redis()
        plant.start_service()
        plant.start_worker("worker")
        time.sleep(READINESS_SECONDS)  # the status without a worker may be cached
        assert ask("--url", plant.url, code=0)["workers"][0]["state"] == "ok"
        plant.kill("worker")
        time.sleep(16)  # its heartbeat expires
        wrong(ask("--url", plant.url), "workers", "none is running")
        plant.kill("redis")
        until(lambda: plant.ready() == 503, 5)
        wrong(ask("--url", plant.url), "server", "takes no jobs")
    finally:
        plant.close()


def test_a_server_that_needs_a_key(tmp_path: Path, settings: Settings) -> None:
    """A warning without one, a problem with a wrong one."""
    from tests.api.conftest import serving

    with serving(settings.model_copy(update={"access": "keys"})) as client:
        url = str(client.base_url)
        assert [one.state for one in doctor._admission(url, None)] == ["warning"]
        assert [one.state for one in doctor._admission(url, "ks_wrong")] == ["problem"]
