"""A result that requests at about the same time share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

ResultT = TypeVar("ResultT")


class Cached(Generic[ResultT]):
    """What a function returns or raises, cached for some seconds. It runs in a thread, once at a time.

    Args:
        function: without arguments.
        seconds: for which its result is cached.
    """

    def __init__(self, function: Callable[[], ResultT], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._task: asyncio.Task[ResultT] | None = None
        self._ended = 0.0

    async def __call__(self) -> ResultT:
        """The cached result, or that of the call that runs now."""
        if self._task is None or (self._task.done() and time.monotonic() > self._ended + self._seconds):
            self._task = asyncio.create_task(asyncio.to_thread(self._function))
            self._task.add_done_callback(self._note)
        return await asyncio.shield(self._task)  # a caller that is cancelled does not cancel it for the others

    def _note(self, task: asyncio.Task[ResultT]) -> None:
        self._ended = time.monotonic()
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all callers may have been cancelled
