"""Which stack runs in a data folder: its lock, which also says where it listens and which processes it has.

The lock is a `flock` on `DATA_DIR/lock` that every process of the stack holds, as they inherit the open file. So it is
free only once the last of them has ended: after a parent that was killed, its Redis still protects its files, also
where the system does not end children with their parent. The next stack ends such leftover processes first.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
from pydantic import BaseModel, ValidationError

from kernelscope.supervise import Child, StackError

SECONDS_BUSY = 1.0  # for which the lock may be held by a command that only checks it
SECONDS_KEYS = 10.0  # by a command that started Redis for a moment
SECONDS_LEFTOVERS = 30.0  # until the processes of a killed stack have ended
FILE = "lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux


class Process(BaseModel):
    """A process, and when it was started: the same number may be another process later.

    On Linux the start is counted in ticks of this boot, so that a change of the clock does not matter.
    """

    pid: int
    created: float
    boot: str = ""

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid=pid, created=_started(pid), boot=_boot())

    def found(self) -> psutil.Process | None:
        """It, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(self.pid) - self.created) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return None
        return process if same and self.boot == _boot() else None


def _started(pid: int) -> float:
    """When a process was started: on Linux in ticks since the system's start, else in seconds of the clock."""
    stat = Path(f"/proc/{pid}/stat")
    return (
        float(stat.read_text().rpartition(")")[2].split()[19])
        if BOOT_ID.exists()
        else psutil.Process(pid).create_time()
    )


def _boot() -> str:
    """Which start of the system this is; empty where that is not known."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


class Running(BaseModel):
    """The content of the lock file."""

    parent: Process
    url: str = ""  # empty: only Redis runs, for a `kernelscope keys`
    ready: bool = False
    children: dict[str, Process] = {}

    def __str__(self) -> str:
        return f"process {self.parent.pid}" + (f", {self.url}" if self.url else "")


class Lock:
    """The lock on a data folder.

    Args:
        url: where the stack that takes it will listen; empty: nowhere.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.ready = False
        self._file: IO[str] | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What children must inherit to hold it too."""
        return (self._file.fileno(),) if self._file else ()

    def take(self, say: Callable[[str], None]) -> None:
        """Hold the lock, once what a killed stack left running is ended.

        Raises:
            StackError: a stack runs in the folder, or this system has no such locks.
        """
        file = (self.folder / FILE).open("a+")
        try:
            self._wait_for(file, say)
        except BaseException:
            file.close()
            raise
        self._file = file
        self.write(())

    def _wait_for(self, file: IO[str], say: Callable[[str], None]) -> None:
        began, ended = time.monotonic(), False
        while not _locked(file):
            holder = _read(self.folder)
            orphaned = holder is not None and holder.parent.found() is None
            if orphaned and holder and not ended:
                ended = _end(holder, say)
            patience = SECONDS_LEFTOVERS if orphaned else SECONDS_KEYS if holder and not holder.url else SECONDS_BUSY
            if time.monotonic() - began > patience:
                raise _refusal(self.folder, holder, orphaned=orphaned)
            time.sleep(0.05)

    def write(self, children: Iterable[Child]) -> None:
        """Note what runs."""
        assert self._file
        found = {}
        for child in children:
            with suppress(psutil.Error):
                if child.process:
                    found[child.name] = Process.of(child.process.pid)
        content = Running(parent=Process.of(os.getpid()), url=self.url, ready=self.ready, children=found)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(content.model_dump_json())
        self._file.flush()

    def release(self) -> None:
        """Let it go; it is free once no child has it either."""
        if self._file:
            self._file.close()
            self._file = None


def running_in(folder: Path) -> Running | None:
    """The stack that runs in this folder; one that is just being started has no URL yet."""
    try:
        with (folder / FILE).open("r") as file:
            if _locked(file, shared=True):
                return None
            found = _read(folder)
    except (OSError, StackError):
        return None
    return found if found and found.parent.found() else None


def _locked(file: IO[str], *, shared: bool = False) -> bool:
    """Whether the lock was free, and is held now."""
    try:
        import fcntl
    except ModuleNotFoundError:
        raise StackError(
            "the local stack needs Linux or macOS (on Windows: WSL); here --url names a server on another machine"
        ) from None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(folder: Path) -> Running | None:
    """The content of the lock file; None if it has none yet."""
    for _ in range(3):
        try:
            return Running.model_validate_json((folder / FILE).read_text())
        except (OSError, ValidationError):
            time.sleep(0.02)  # it may be just being written
    return None


def _end(holder: Running, say: Callable[[str], None]) -> bool:
    """Have the processes of a stack end whose parent was killed."""
    left = {name: process for name, one in holder.children.items() if (process := one.found())}
    if left:
        named = ", ".join(f"{name} ({process.pid})" for name, process in left.items())
        say(f"an earlier stack was killed; ending what it left running: {named}")
    for process in reversed(left.values()):
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(list(left.values()), timeout=SECONDS_LEFTOVERS / 2)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    return True


def _refusal(folder: Path, holder: Running | None, *, orphaned: bool) -> StackError:
    if orphaned:
        return StackError(
            f"processes of a stack that was killed still use {folder}, and cannot be ended from here; "
            f"`lsof {folder / FILE}` lists them"
        )
    return StackError(f"another stack is running in {folder}: {holder or 'it is just starting'}")


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def why_not_free(host: str, port: int) -> str:
    """Why nothing can listen there; empty where something can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""


def url_of(host: str, port: int) -> str:
    """Where a server on this machine that listens there is reached from this machine."""
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - recognised, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
