"""A command whose private stack fails: it ends at once, with the reason."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kernelscope.client import ServerUnreachable
from kernelscope.serving import _watched
from kernelscope.supervise import Child, StackError, StackFailed


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
