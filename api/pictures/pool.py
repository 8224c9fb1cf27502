"""A pool of threads that draw figures, and its queue.

It does not delay the process's other requests: a waiting request occupies no thread, and the queue is bounded.
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
MOST_WAITING, MOST_OF_ONE = 256, 64  # of all callers together, and of one
RETRY_SECONDS = 5


class Pool:
    """Runs actions in threads: those of one caller in order, and callers in turn.

    Args:
        threads: number of actions that run at once.
        most_waiting: limit on waiting actions of all callers together.
        most_of_one: the same of one caller.
    """

    def __init__(
        self, threads: int = THREADS, most_waiting: int = MOST_WAITING, most_of_one: int = MOST_OF_ONE
    ) -> None:
        self.most_waiting, self.most_of_one = most_waiting, most_of_one
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="drawing")
        self._free = threads
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}  # by caller; the first caller is next

    @property
    def waiting(self) -> int:
        """The number of actions that wait for a thread."""
        return sum(map(len, self._turns.values()))

    def run(self, caller: str, action: Callable[[], T], *, bounded: bool = True) -> Coroutine[None, None, T]:
        """The action's result, once a thread has run it. Its place in the queue is assigned at once.

        Args:
            bounded: whether the limits apply. A response that has begun cannot be refused, so its actions wait.

        Raises:
            DrawingQueueFull: a limit is reached.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._free:
            self._free -= 1
            turn.set_result(None)
        else:
            if bounded:
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
            detail = f"{own} of your pictures are waiting to be drawn; try again when some of them are done"
        elif self.waiting >= self.most_waiting:
            detail = f"{self.waiting} pictures are waiting to be drawn, the limit of this server"
        else:
            return
        raise DrawingQueueFull(detail, retry_after=RETRY_SECONDS)

    def _pass_on(self) -> None:
        """Give the free thread to the next caller, who then becomes the last one."""
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
        """Start no more actions."""
        self._executor.shutdown(wait=False, cancel_futures=True)
