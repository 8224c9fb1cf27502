"""A few threads of their own that draw, and who waits for one of them.

Nothing here holds up what else the process does: who waits takes no thread, and of those who wait there is a bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.errors import DrawingQueueFull

T = TypeVar("T")

THREADS = 2
MOST_WAITING, MOST_OF_ONE = 256, 64  # of everybody together, and of one caller
RETRY_SECONDS = 5


class Pool:
    """Runs what callers bring: each caller's in order, and of the callers one after the other.

    Args:
        threads: that run at once.
        most_waiting: what waits for a thread at most, of everybody together.
        most_of_one: the same of one caller.
    """

    def __init__(
        self, threads: int = THREADS, most_waiting: int = MOST_WAITING, most_of_one: int = MOST_OF_ONE
    ) -> None:
        self.most_waiting, self.most_of_one = most_waiting, most_of_one
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="drawing")
        self._free = threads
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}  # by caller; who is first here is next

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return sum(map(len, self._turns.values()))

    def run(self, caller: str, action: Callable[[], T], *, patient: bool = False) -> Coroutine[None, None, T]:
        """What the action returns, once a thread has run it. The place in the queue is taken at once.

        Args:
            patient: it waits, however many do: an answer that has begun cannot be refused.

        Raises:
            DrawingQueueFull: too many wait already.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._free:
            self._free -= 1
            turn.set_result(None)
        else:
            if not patient:
                self._check_room(caller)
            self._turns.setdefault(caller, deque()).append(turn)
        return self._when(turn, action)

    async def _when(self, turn: asyncio.Future[None], action: Callable[[], T]) -> T:
        await turn
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, action)
        finally:
            self._pass_on()

    def _check_room(self, caller: str) -> None:
        own = len(self._turns.get(caller, ()))
        if own >= self.most_of_one:
            detail = f"{own} of your pictures wait to be drawn; ask again when some of them are there"
        elif self.waiting >= self.most_waiting:
            detail = f"{self.waiting} pictures wait to be drawn, which is the most that this server keeps waiting"
        else:
            return
        raise DrawingQueueFull(detail, retry_after=RETRY_SECONDS)

    def _pass_on(self) -> None:
        """The thread is free: it is the turn of the next caller, who goes behind the others."""
        while self._turns:
            caller, turns = next(iter(self._turns.items()))
            turn = turns.popleft()
            del self._turns[caller]
            if turns:
                self._turns[caller] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """Begin nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
