"""Limits on the request bodies and decoded images in memory at once, shared fairly among callers.

Bodies and pixels have separate budgets, so a request that has sent its body and waits for its images to be checked
never waits for requests that in turn wait for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from fastapi import Request

from shared import images
from shared.errors import ServerBusy

ArgumentsT = ParamSpec("ArgumentsT")
ResultT = TypeVar("ResultT")

BODIES, OWN_BODIES = 4, 3  # times the largest body: what all callers together and one caller may have in memory
BODY_PATIENCE_SECONDS = 5.0  # that a body waits for its memory
CHECK_PATIENCE_SECONDS = 15.0  # that an image waits to be checked
RETRY_SECONDS = 5
SPARE_PIXELS = 12_500_000  # so that a phone's photograph is checked beside the largest image
LEAST_PIXELS = 1_000_000  # that even the smallest image counts
LARGE_PIXELS = 4_000_000  # a larger image is only verified, not converted as for display
CHECKERS = 3  # threads


@dataclass(eq=False)
class _Waiter:
    caller: str
    amount: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Budget:
    """An amount of a resource on one event loop. Of several waiting callers, the least recently served is next.

    Start-time fair queueing: in virtual time, each grant begins where its caller's previous one ended, or now.

    Args:
        total: the whole amount.
        own: the most of it that one caller may hold.
        patience: seconds that a caller waits for some of it.
        what: the name of the resource, for the error message.
    """

    def __init__(self, total: int, own: int, patience: float, what: str) -> None:
        self.free = total
        self.own = own
        self.patience = patience
        self.what = what
        self._waiters: list[_Waiter] = []
        self._held: Counter[str] = Counter()  # by caller
        self._ends: dict[str, int] = {}  # by caller, in virtual time
        self._now = 0

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return len(self._waiters)

    @asynccontextmanager
    async def reserve(self, caller: str, amount: int) -> AsyncIterator[None]:
        """Hold this amount, at most `own`, within the context.

        Raises:
            ServerBusy: it was not free in time.
        """
        amount = min(amount, self.own)
        await self._acquire(caller, amount)
        try:
            yield
        finally:
            self._release(caller, amount)

    async def _acquire(self, caller: str, amount: int) -> None:
        waiter = _Waiter(caller, amount)
        self._waiters.append(waiter)
        self._grant()
        try:
            async with asyncio.timeout(self.patience):
                await waiter.granted
        except BaseException as error:
            self._cancel(waiter)
            if isinstance(error, TimeoutError):
                raise ServerBusy(
                    f"this server has too many {self.what} at the moment; try again in {RETRY_SECONDS} s",
                    retry_after=RETRY_SECONDS,
                ) from None
            raise

    def _cancel(self, waiter: _Waiter) -> None:
        """Stop waiting; release what was granted at the same moment."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._grant()
        else:
            self._release(waiter.caller, waiter.amount)

    def _release(self, caller: str, amount: int) -> None:
        self.free += amount
        self._held[caller] -= amount
        self._held = +self._held
        self._grant()

    def _grant(self) -> None:
        while able := [one for one in self._waiters if self._held[one.caller] + one.amount <= self.own]:
            waiter = min(able, key=lambda one: self._start(one.caller))
            if waiter.amount > self.free:  # smaller ones must not overtake it, or it could wait for ever
                return
            self._now = self._start(waiter.caller)
            self._ends = {caller: end for caller, end in self._ends.items() if end > self._now}
            self._ends[waiter.caller] = self._now + waiter.amount
            self._held[waiter.caller] += waiter.amount
            self.free -= waiter.amount
            self._waiters.remove(waiter)
            if not waiter.granted.cancelled():  # a cancelled waiter releases it itself
                waiter.granted.set_result(None)

    def _start(self, caller: str) -> int:
        return max(self._now, self._ends.get(caller, 0))


class Capacity:
    """The budgets of one API process, and its threads that check images.

    Args:
        body_bytes: the size of the largest body.
        pixels: the size of the largest image.
    """

    def __init__(self, body_bytes: int, pixels: int) -> None:
        self.body_bytes = body_bytes
        self.bodies = Budget(BODIES * body_bytes, OWN_BODIES * body_bytes, BODY_PATIENCE_SECONDS, "uploads")
        self.pixels = Budget(pixels + SPARE_PIXELS, pixels, CHECK_PATIENCE_SECONDS, "images to check")
        self._checkers = ThreadPoolExecutor(CHECKERS, "check")

    async def run_check(
        self, check: Callable[ArgumentsT, ResultT], *args: ArgumentsT.args, **kwargs: ArgumentsT.kwargs
    ) -> ResultT:
        """Call a function that checks an image, in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._checkers, lambda: check(*args, **kwargs))

    def close(self) -> None:
        """Stop the threads."""
        self._checkers.shutdown(wait=False, cancel_futures=True)


async def check_image(capacity: Capacity, caller: str, data: bytes, most: int) -> None:
    """Refuse bytes that are not a complete image.

    Args:
        most: pixels.

    Raises:
        UnsupportedImage, UnusableImage, ServerBusy.
    """
    pixels = await capacity.run_check(images.pixels, data, most)
    async with capacity.pixels.reserve(caller, max(pixels, LEAST_PIXELS)):
        await capacity.run_check(images.decode if pixels <= LARGE_PIXELS else images.verify, data, most)


def caller_key(request: Request) -> str:
    """What identifies a caller in a budget: the key's name, or without a key the address."""
    owner: str = request.state.caller.owner
    return f"key {owner}" if owner else f"address {request.client.host if request.client else ''}"
