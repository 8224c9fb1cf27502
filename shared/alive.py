"""Liveness check of a program that has no HTTP server: `python -m shared.alive NAME SECONDS`.

The program touches a file in each round of its main loop. Redis is not queried: a program whose Redis is unavailable or
full is alive all the same. The check runs every few seconds, so it imports the standard library only.
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
    """Record that the main loop is running. A failure to write is ignored: then there is no check either."""
    with suppress(OSError):
        _file(name).touch()
    _removed_at_exit(name)


@cache
def _removed_at_exit(name: str) -> None:
    atexit.register(stop, name)


def stop(name: str) -> None:
    """Remove the file: the program ends."""
    with suppress(OSError):
        _file(name).unlink(missing_ok=True)


def alive(name: str, seconds: float) -> bool:
    """Whether the program has called `beat` in the last `seconds`."""
    try:
        return time.time() - _file(name).stat().st_mtime < seconds
    except FileNotFoundError:
        return False


def _file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"kernelscope-{os.getuid()}-{name}"


if __name__ == "__main__":
    sys.exit(not alive(sys.argv[1], float(sys.argv[2])))
