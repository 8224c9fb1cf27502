"""Whether a program that serves nothing still goes round: `python -m shared.alive NAME SECONDS`, a health check.

A program whose Redis is away or full is alive, so Redis is not asked; to wait for it may take minutes. Nothing of ours
is imported, since this is started every few seconds.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path


def beat(name: str) -> None:
    """This program has gone round once more. Where nothing can be written, nobody asks."""
    with suppress(OSError):
        _file(name).touch()
    _forgotten_at_the_end(name)


@cache
def _forgotten_at_the_end(name: str) -> None:
    """Registered once: a program that has ended leaves nothing."""
    atexit.register(forget, name)


def forget(name: str) -> None:
    """This program ends."""
    with suppress(OSError):
        _file(name).unlink(missing_ok=True)


def alive(name: str, seconds: float) -> bool:
    """Whether it has, in the last so many seconds."""
    try:
        return time.time() - _file(name).stat().st_mtime < seconds
    except FileNotFoundError:
        return False


def _file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"kernelscope-{os.getuid()}-{name}"


if __name__ == "__main__":
    sys.exit(not alive(sys.argv[1], float(sys.argv[2])))
