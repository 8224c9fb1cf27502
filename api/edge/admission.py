"""How much is taken in at once: bytes of bodies and pixels of decodes, of all callers together, shared out fairly.

Bodies and pixels have a budget each, so that who has sent a body and waits for its images to be checked never waits
for those who wait for it.
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

BODIES, OWN_BODIES = 4, 3  # of the largest: what may be in memory at once, of everybody and of one caller
PATIENCE_SECONDS = 5.0  # that a body waits for room
CHECK_SECONDS = 15.0  # that an image waits to be checked
RETRY_SECONDS = 5
SPARE_PIXELS = 12_500_000  # a telephone's photograph is checked beside the largest image
LEAST_PIXELS = 1_000_000  # that the smallest image counts for
LARGE_PIXELS = 4_000_000  # above which an image is decoded and not looked at as viewers show it
CHECKERS = 3


@dataclass(eq=False)
class _Waiter:
    caller: str
    amount: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Budget:
    """So much at once, of one event loop. Where several callers wait, who has been given least lately is next.

    Start-time fair queueing: each grant begins, in virtual time, where its caller's last one ended, or now.

    Args:
        total: what there is.
        own: the most of it that one caller has.
        patience: seconds that a caller waits for some of it.
        what: that it is of, for the refusal.
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
        """How many wait for some."""
        return len(self._waiters)

    @asynccontextmanager
    async def taken(self, caller: str, amount: int) -> AsyncIterator[None]:
        """Some of it, given back at the end; who wants more than one may have is given that.

        Raises:
            ServerBusy: none was free in time.
        """
        amount = min(amount, self.own)
        await self._take(caller, amount)
        try:
            yield
        finally:
            self._give_back(caller, amount)

    async def _take(self, caller: str, amount: int) -> None:
        waiter = _Waiter(caller, amount)
        self._waiters.append(waiter)
        self._serve()
        try:
            async with asyncio.timeout(self.patience):
                await waiter.granted
        except BaseException as error:
            self._forget(waiter)
            if isinstance(error, TimeoutError):
                raise ServerBusy(
                    f"this server has its hands full of {self.what}; try again in {RETRY_SECONDS} s",
                    retry_after=RETRY_SECONDS,
                ) from None
            raise

    def _forget(self, waiter: _Waiter) -> None:
        """It waits no longer; what it was given at this very moment goes back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._serve()
        else:
            self._give_back(waiter.caller, waiter.amount)

    def _give_back(self, caller: str, amount: int) -> None:
        self.free += amount
        self._held[caller] -= amount
        self._held = +self._held
        self._serve()

    def _serve(self) -> None:
        while able := [one for one in self._waiters if self._held[one.caller] + one.amount <= self.own]:
            waiter = min(able, key=lambda one: self._start(one.caller))
            if waiter.amount > self.free:  # smaller ones do not overtake it: it would wait for ever
                return
            self._now = self._start(waiter.caller)
            self._ends = {caller: end for caller, end in self._ends.items() if end > self._now}
            self._ends[waiter.caller] = self._now + waiter.amount
            self._held[waiter.caller] += waiter.amount
            self.free -= waiter.amount
            self._waiters.remove(waiter)
            if not waiter.granted.cancelled():  # else it has its turn to give it back
                waiter.granted.set_result(None)

    def _start(self, caller: str) -> int:
        return max(self._now, self._ends.get(caller, 0))


class Admission:
    """The budgets of one API process, and the threads that check images.

    Args:
        body_bytes: of the largest body that is taken.
        pixels: of the largest image.
    """

    def __init__(self, body_bytes: int, pixels: int) -> None:
        self.body_bytes = body_bytes
        self.bodies = Budget(BODIES * body_bytes, OWN_BODIES * body_bytes, PATIENCE_SECONDS, "uploads")
        self.pixels = Budget(pixels + SPARE_PIXELS, pixels, CHECK_SECONDS, "images to check")
        self._checkers = ThreadPoolExecutor(CHECKERS, "check")

    async def checked(
        self, check: Callable[ArgumentsT, ResultT], *args: ArgumentsT.args, **kwargs: ArgumentsT.kwargs
    ) -> ResultT:
        """What a function says of an image, called in a thread for such."""
        return await asyncio.get_running_loop().run_in_executor(self._checkers, lambda: check(*args, **kwargs))

    def close(self) -> None:
        """End the threads."""
        self._checkers.shutdown(wait=False, cancel_futures=True)


async def verified(admission: Admission, caller: str, data: bytes, most: int) -> None:
    """Refuse bytes that are no whole image.

    Args:
        most: pixels.

    Raises:
        UnsupportedImage, UnusableImage, ServerBusy.
    """
    pixels = await admission.checked(images.pixels, data, most)
    async with admission.pixels.taken(caller, max(pixels, LEAST_PIXELS)):
        await admission.checked(images.decode if pixels <= LARGE_PIXELS else images.verify, data, most)


def caller_of(request: Request) -> str:
    """Whom a request's share is counted to: the key's name, or where there is none the address."""
    owner: str = request.state.caller.owner
    return f"key {owner}" if owner else f"address {request.client.host if request.client else ''}"
