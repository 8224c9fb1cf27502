"""An interrupt while a process of the stack is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from kernelscope.supervise import interrupts_deferred

# Python ignores the exceptions of functions that run at a fork.
STARTED = """
import os, signal, sys, time
from pathlib import Path
from kernelscope.supervise import Child, end_as_by_ctrl_c
end_as_by_ctrl_c()
def strike():
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(0.01)  # the handler runs before the next instruction
os.register_at_fork(after_in_parent=strike)
child = Child("sleep", ["sleep", "60"], {}, Path(sys.argv[2]))
try:
    child.start()
except KeyboardInterrupt:
    print("interrupted", child.process is not None and not child.dead)
    child.kill()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no function runs at the start of a process")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_at_the_fork_is_not_lost(number: str, tmp_path: Path) -> None:
    """It comes once the process has started and is known, so that it can be stopped."""
    command = [sys.executable, "-c", STARTED, number, str(tmp_path / "child.log")]
    with (tmp_path / "said.txt").open("w") as said:
        assert subprocess.run(command, stdout=said, stderr=said, timeout=60, check=False).returncode == 0
    assert (tmp_path / "said.txt").read_text() == "interrupted True\n"


def test_handlers_are_restored_and_run_once() -> None:
    """Also where the block fails; in other threads than the main one nothing changes."""
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        with suppress(OSError), interrupts_deferred():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            assert not caught
            deferring = signal.getsignal(signal.SIGTERM)
            raise OSError("no such program")
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own
        assert callable(deferring)
        deferring(signal.SIGTERM, None)  # as if an interrupt had left it in place
        assert caught == 2 * [signal.SIGTERM]
        seen: list[object] = []

        def elsewhere() -> None:
            with interrupts_deferred():
                seen.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == [own]
    finally:
        signal.signal(signal.SIGTERM, before)
