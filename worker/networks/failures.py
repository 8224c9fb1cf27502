"""Failed attempts to load networks: when the next attempt follows, and after how many a network is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from shared.errors import ModelUnavailable, StoreUnavailable, first_line

log = logging.getLogger(__name__)

ATTEMPTS = 3  # after which jobs that wait for the network soon fail, unless another worker has it
PAUSES = (10.0, 30.0)  # seconds after the first failed attempts
STORE_PAUSE = 10.0  # seconds after an attempt for which the store was not available; it is not counted
MEMORY_PAUSE = 60.0  # seconds after an attempt for which memory ran out: other work may have needed it
NO_FILE = (None, None, None)  # the source of a network that is not from a file


@dataclass(frozen=True)
class LoadFailure:
    """The last attempt to load a network, which failed.

    Args:
        detail: why.
        source: what was to be loaded.
        attempts: how many have failed, without those for which the store was not available.
        pause: seconds until the next attempt; None: as long as possible.
        at: time of the failure, by the monotonic clock.
    """

    detail: str  # not the error, whose traceback would keep the half-loaded network in memory
    source: object
    attempts: int
    pause: float | None
    at: float

    @property
    def kind(self) -> Literal["temporary", "final"]:
        """Whether the next attempt follows soon."""
        return "final" if self.attempts >= ATTEMPTS else "temporary"

    @property
    def reason(self) -> str:
        """Why the network is not available, with the number of attempts."""
        return f"{self.detail} ({self.attempts} attempts failed)" if self.attempts > 1 else self.detail

    def pauses(self, longest: float) -> bool:
        """Whether the next attempt must wait; after the last one for the longest pause."""
        return time.monotonic() < self.at + (longest if self.pause is None else min(longest, self.pause))


class LoadFailures:
    """The networks that could not be loaded.

    Args:
        source: what would be loaded now for a name. If that changes, earlier failures do not matter.
    """

    def __init__(self, source: Callable[[str], object]) -> None:
        self._source = source
        self._last: dict[str, LoadFailure] = {}

    def add(self, name: str, error: Exception, what: str, source: object = NO_FILE) -> ModelUnavailable:
        """Record a failed attempt to load a network. Returns the public error.

        Args:
            what: begins the message of an unexpected error.
            source: what was to be loaded.
        """
        before = self._last.get(name)
        attempts = before.attempts if before and before.source == source else 0
        pause: float | None
        if isinstance(error, StoreUnavailable):
            detail, pause = f"no weights for {name} now: {error}", STORE_PAUSE
        else:
            attempts += 1
            pause = PAUSES[attempts - 1] if attempts < ATTEMPTS else None
            if out_of_memory(error):
                detail, pause = f"{name} does not fit into memory now: {first_line(error)}", pause and MEMORY_PAUSE
            elif isinstance(error, ModelUnavailable):
                detail = error.detail
            else:
                detail = f"{what}: {error}"
                log.error("%s could not be loaded", name, exc_info=error)
        self._last[name] = LoadFailure(detail, source, attempts, pause, time.monotonic())
        log.warning("%s", self._last[name].reason)
        return ModelUnavailable(detail)

    def get(self, name: str) -> LoadFailure | None:
        """The last attempt to load the network, if it failed and there is nothing else to load now."""
        last = self._last.get(name)
        return last if last and last.source == self._source(name) else None

    def forget(self, name: str) -> None:
        """The network is loaded."""
        self._last.pop(name, None)

    def due(self, longest: float) -> list[str]:
        """The networks whose next attempt need not wait any more."""
        return [name for name in list(self._last) if (failure := self.get(name)) and not failure.pauses(longest)]


def out_of_memory(error: Exception) -> bool:
    """Whether the error is that memory has run out, as torch or a library of the card reports it."""
    text = str(error)
    matches = any(word in text for word in ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED"))
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and matches)
