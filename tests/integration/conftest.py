"""Real processes: Redis, worker, API and housekeeping, as `kernelscope up` starts them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernelscope.client import Client, Job, ServerUnreachable
from kernelscope.stack import Stack, free_port
from shared.drawings import scene
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


def local_settings(folder: Path, **changes: object) -> Settings:
    """Settings of a stack of the test's own."""
    own: dict[str, object] = {
        "data_dir": folder,
        "store_url": "",
        "weights_dir": folder / "weights",
        "download_weights": False,
        "preload": ("vgg_mini",),
        "port": free_port(),
    }
    return Settings(_env_file=None).model_copy(update={**own, **changes})


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with `vgg_mini`, shared by the tests that do not break it."""
    with Stack(local_settings(tmp_path_factory.mktemp("stack")), print).running() as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client of the shared stack."""
    with Client(stack.url) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a photo.jpg."""
    scene(11, 96).image.save(tmp_path / "photo.jpg")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photos")
    return tmp_path


@dataclass
class Up:
    """`kernelscope up` as a process."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    def wait_until(self, text: str, seconds: float = 90) -> str:
        """What it printed, once it has printed this."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            said = self.said()
            if text in said:
                return said
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"never said {text!r}, but:\n{self.said()}")

    def said(self) -> str:
        """Everything that it printed so far, in one line: the terminal's width is not the test's."""
        return " ".join((self.folder / "up.txt").read_text().split())

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ctrl-C, and its exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def children(self) -> dict[str, int]:
        """Its child processes by what they run."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if parent == self.process.pid:
                names = ("redis-server", "-m\0api\0", "api.housekeeping", "worker")
                found[next((name for name in names if name in command), command)] = int(entry.name)
        return found


@contextmanager
def up(
    folder: Path,
    *options: str,
    port: int | None = None,
    code: str | None = None,
    prefix: tuple[str, ...] = (),
    **environment: str,
) -> Iterator[Up]:
    """Run `kernelscope up` on a data folder; killed at the end if it still runs.

    Args:
        code: what Python runs instead of the program.
        prefix: a command that runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    own = {
        "KERNELSCOPE_PRELOAD": "vgg_mini",
        "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false",
        "KERNELSCOPE_ENGINE": "dummy",
        "PYTHONUNBUFFERED": "1",
        "HTTP_PROXY": "http://127.0.0.1:9",  # which must not come between this machine and itself
    }
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        own.setdefault(name, "")
    program = ["-c", code] if code else ["-m", "kernelscope"]
    command = [*prefix, sys.executable, *program, "up", "--data-dir", str(folder / "data"), "--port", str(port)]
    with (
        (folder / "up.txt").open("w") as output,
        subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **own, **environment},
        ) as process,
    ):
        try:
            yield Up(process, f"http://127.0.0.1:{port}", folder)
        finally:
            if process.poll() is None:
                process.kill()


def until_status(client: Client, job_id: str, *statuses: str, seconds: float = 60) -> Job:
    """The job, once it has one of these states."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            job = client.job(job_id)
        except ServerUnreachable:
            time.sleep(0.2)
            continue
        if job.status in statuses:
            return job
        time.sleep(0.05)
    raise AssertionError(f"{job_id} never became {statuses}")
