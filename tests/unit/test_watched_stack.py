"""A command whose private stack fails: it ends at once, with the reason."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kernelscope import cli, serving
from kernelscope.client import ServerUnreachable
from kernelscope.serving import _watched
from kernelscope.stack import Stack
from kernelscope.supervise import Child, StackError, StackFailed
from shared.settings import Settings


class FailedStack:
    """A stack with a process that cannot be started again.

    Args:
        watch: what it does when it looks after its processes.
    """

    def __init__(self, folder: Path, watch: Callable[[], None]) -> None:
        self.watch = watch
        log = folder / "api.log"
        log.write_text("out of memory\n")
        self.children = [Child("api", [], {}, log)]


def test_the_command_ends_wherever_it_is(tmp_path: Path) -> None:
    """No `except Exception` on the way stops that; afterwards the signal is what it was."""

    def given_up() -> None:
        raise StackError("worker was killed by signal 9 5 times in a row. Its log (…) ends:\n    no memory")

    stack: Any = FailedStack(tmp_path, given_up)
    before = signal.getsignal(signal.SIGUSR1)
    began = time.monotonic()
    with (
        pytest.raises(StackError, match="the private stack failed: worker was killed by signal 9") as ended,
        _watched(stack),
        suppress(Exception),
    ):
        time.sleep(60)
    assert time.monotonic() - began < 20
    assert "no memory" in str(ended.value)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not issubclass(StackFailed, KeyboardInterrupt | Exception)


def test_an_api_that_does_not_answer_is_a_failure_of_the_stack(tmp_path: Path) -> None:
    """With the end of its log; Ctrl-C and other errors stay what they are."""
    stack: Any = FailedStack(tmp_path, lambda: None)
    with pytest.raises(StackError, match=r"(?s)the private stack failed: .*out of memory"), _watched(stack):
        raise ServerUnreachable("http://127.0.0.1:1", None)
    for other in (KeyboardInterrupt, OSError):
        with pytest.raises(other), _watched(stack):
            raise other


def test_a_failure_while_another_one_is_reported_does_not_interrupt_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal has no effect while the end of the log is read."""
    reading = threading.Event()

    def given_up() -> None:
        reading.wait(10)
        raise StackError("worker was killed")

    def tail(_: Child) -> str:
        reading.set()
        time.sleep(1)
        return "out of memory"

    monkeypatch.setattr(serving, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(Child, "tail", tail)
    stack: Any = FailedStack(tmp_path, given_up)

    def unreachable() -> None:
        time.sleep(0.3)  # it is watched meanwhile
        raise ServerUnreachable("http://127.0.0.1:1", None)

    with pytest.raises(StackError, match=r"(?s)the private stack failed: .*out of memory"), _watched(stack):
        unreachable()


def test_a_failure_just_after_the_block_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal may arrive before it is known that the block has ended."""
    ended = threading.Event()

    class Late(threading.Event):
        def set(self) -> None:
            if not ended.is_set():
                ended.set()
                time.sleep(1)
            super().set()

    def given_up() -> None:
        ended.wait(10)
        raise StackError("worker was killed")

    monkeypatch.setattr(serving, "Event", Late)
    monkeypatch.setattr(serving, "WATCH_SECONDS", 0.01)
    stack: Any = FailedStack(tmp_path, given_up)
    with pytest.raises(StackError, match="the private stack failed: worker was killed"), _watched(stack):
        time.sleep(0.3)


def test_wherever_it_is_raised_the_command_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also outside the block: a line and exit code 1, no traceback."""

    def failed() -> None:
        raise StackFailed("the private stack failed: worker was killed")

    monkeypatch.setattr(cli, "app", failed)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "kernelscope: the private stack failed: worker was killed\n"


@pytest.mark.parametrize("temporary", [False, True])
def test_a_log_that_will_be_deleted_is_not_named(tmp_path: Path, *, temporary: bool) -> None:
    """Its end is in the message; `kernelscope up` keeps its logs."""
    log = tmp_path / "logs" / "worker.log"
    child = Child("worker", ["sh", "-c", "echo no memory; exit 3"], {}, log)
    settings = Settings(data_dir=tmp_path)
    stack = Stack(settings, lambda _: None, temporary=temporary)
    stack._launch(child)
    with pytest.raises(
        StackError, match=r"(?s)worker ended with exit code 3 before it was ready\..*no memory"
    ) as ended:
        stack._wait(lambda: False, "the worker")
    assert (str(tmp_path) in str(ended.value)) is not temporary
