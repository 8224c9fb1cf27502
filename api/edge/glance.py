"""One look at something for all who ask at about the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

SeenT = TypeVar("SeenT")


class Glance(Generic[SeenT]):
    """What a function returns or raises, called in a thread, once at a time and at most once in so many seconds.

    Args:
        look: the function.
        seconds: for which what was seen is told again.
    """

    def __init__(self, look: Callable[[], SeenT], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._task: asyncio.Task[SeenT] | None = None
        self._ended = 0.0

    async def __call__(self) -> SeenT:
        """What was seen last, or is being seen now."""
        if self._task is None or (self._task.done() and time.monotonic() > self._ended + self._seconds):
            self._task = asyncio.create_task(asyncio.to_thread(self._look))
            self._task.add_done_callback(self._note)
        return await asyncio.shield(self._task)  # who goes away takes it from nobody else

    def _note(self, task: asyncio.Task[SeenT]) -> None:
        self._ended = time.monotonic()
        if not task.cancelled():
            task.exception()  # it is told to whoever asks, if anybody does
