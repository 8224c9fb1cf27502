"""Child processes of the local stack: started, watched, restarted and stopped; and the signals that end the parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

STEADY_SECONDS = 30.0  # a child that lived this long may die again without counting
MOST_RESTARTS = 5
LOG_BYTES = 10_000_000
TAIL_LINES = 15
TIED_TO_PARENT = sys.platform == "linux"  # elsewhere children outlive a parent that is killed by SIGKILL


class StackError(Exception):
    """The stack cannot start or continue; the message says why and what to do."""


class StackFailed(BaseException):
    """The private stack of a command has failed meanwhile. As KeyboardInterrupt it may be raised anywhere."""


@dataclass
class Child:
    """A process of the stack.

    Args:
        inherited: file descriptors that it has open as well.
        temporary: its log is deleted when the stack has stopped, so messages do not name it.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    stdin: Path = Path(os.devnull)
    inherited: Sequence[int] = ()
    temporary: bool = False
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0

    def start(self) -> None:
        """Start it with its output in its log file. On Linux it ends when this process does."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as output, self.stdin.open("rb") as stdin, interrupts_deferred():
            self.process = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                pass_fds=self.inherited,
                start_new_session=True,  # Ctrl-C is for this process, which stops them in order
                preexec_fn=die_with_parent if TIED_TO_PARENT else None,
            )
        self.started = time.monotonic()

    @property
    def dead(self) -> bool:
        """Whether it was started and has ended."""
        return self.process is not None and self.process.poll() is not None

    @property
    def code(self) -> int:
        """The exit code of one that has ended."""
        assert self.process is not None
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def ending(self) -> str:
        """How it ended."""
        return f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"

    def restart(self) -> str:
        """Start it again after it has ended, after a pause that grows. Returns how it had ended.

        Raises:
            StackError: it has died five times in a row within 30 s of its start.
        """
        ending, lived = self.ending, time.monotonic() - self.started
        if self.code == 0:  # a worker whose network was registered anew
            self.restarts = 0
        else:
            self.restarts = self.restarts + 1 if lived < STEADY_SECONDS else 1
        if self.restarts > MOST_RESTARTS:
            raise StackError(f"{self.name} {ending} {MOST_RESTARTS} times in a row. {self.log_end}")
        time.sleep(min(0.2 * 2**self.restarts, 5.0))
        self.start()
        return ending

    def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after the grace period."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process and self.process.poll() is None:
            self.process.kill()

    @property
    def log_place(self) -> str:
        """Where its log is, in brackets; nothing if that will be deleted."""
        return "" if self.temporary else f" ({self.log})"

    @property
    def log_end(self) -> str:
        """A sentence with the last lines of its log."""
        return f"Its log{self.log_place} ends:\n{self.tail()}"

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])


def die_with_parent() -> None:
    """Linux: the child gets SIGTERM when this process dies, even by SIGKILL."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Signals with a handler of this program are handled at the end of the block, for the start of a process.

    A fork calls functions, of `logging` among others, whose exceptions Python ignores: a KeyboardInterrupt would be
    lost in them, and their locks be held for ever. Handlers run in the main thread only, so others need nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    deferring = True

    def defer(number: int, frame: FrameType | None) -> None:
        if deferring:
            arrived.append(number)
        else:  # an interrupt came before this handler was replaced below
            before[number](number, frame)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, defer)
        yield
    finally:
        deferring = False
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


def end_as_by_ctrl_c() -> None:
    """SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt from now on, so that everything is stopped.

    SIGHUP stays ignored under nohup; Windows has none.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hung_up)


def _hung_up(number: int, _: FrameType | None) -> None:
    """The terminal is closed: writing to it would be an error, so output is discarded."""
    signal.signal(number, signal.SIG_IGN)  # the shell and the kernel may both send it
    discarded = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.dup2(discarded, descriptor)
    os.close(discarded)
    raise KeyboardInterrupt
