"""One API process with Redis, and measurements of it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import Plant, until

__all__ = ["Memory", "Plant", "alive", "open_files", "until"]

FILES = 8192  # open files of a process: both ends of a thousand connections, and more


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Plant]:
    """Redis and one API. No housekeeping, so invented webhooks are not called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
    plant = Plant(tmp_path, KERNELSCOPE_ENGINE="dummy")
    try:
        plant.start_redis()
        plant.start("api", [sys.executable, "-m", "api"], {"KERNELSCOPE_PORT": str(plant.api_port)})
        until(lambda: plant.ready() == 200, 30)
        yield plant
    finally:
        plant.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Memory:
    """The resident memory of a plant's process, in MB (10⁶ bytes)."""

    def __init__(self, plant: Plant, name: str = "api") -> None:
        self._status = Path(f"/proc/{plant.processes[name].pid}/status")
        self.start = self.now

    @property
    def now(self) -> float:
        """The current value."""
        return self._read("VmRSS")

    @property
    def peak(self) -> float:
        """The largest value so far."""
        return self._read("VmHWM")

    def _read(self, name: str) -> float:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024 / 1e6


def open_files(plant: Plant) -> int:
    """The number of files and connections that the API has open."""
    return len(list(Path(f"/proc/{plant.processes['api'].pid}/fd").iterdir()))


def alive(plant: Plant) -> bool:
    """Whether the API process is still the same, and responds."""
    return plant.processes["api"].poll() is None and plant.ready() == 200
