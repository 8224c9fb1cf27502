"""News of jobs: one subscription to Redis for all who wait."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from prometheus_client import Gauge
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.jobs import Polling

log = logging.getLogger(__name__)

CHANNEL = "ks:events"
LOOK_SECONDS = 5.0  # after which one looks even without news: the subscription may have been away


@dataclass(eq=False)
class Bell:
    """Rings when there is news of a job."""

    kinds: tuple[str, ...]
    _rung: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """There is news."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Until there was news since the last wait, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        self._rung.clear()


class News:
    """Listens for all who wait."""

    def __init__(self, polling: Polling) -> None:
        self.polling = polling
        self.ending = False
        self.waits = Gauge("kernelscope_long_polls", "Requests that wait for a job's end.", registry=None)
        self._bells: dict[str, list[Bell]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._closed = False  # a cancellation alone can be lost in a command to Redis, see `_Feed`

    def start(self) -> None:
        """Begin to listen, on the running loop."""
        self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        """This process is told to stop: whoever waits is answered now, and nobody is kept waiting from here on."""
        self.ending = True
        for bells in self._bells.values():
            for bell in bells:
                bell.ring()

    async def close(self) -> None:
        """Stop listening."""
        self._closed = True
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def of(self, job_id: str, *kinds: str) -> Iterator[Bell]:
        """A bell for news of a job; all kinds, or these."""
        bell = Bell(kinds)
        if self.ending:
            bell.ring()
        self._bells[job_id].append(bell)
        try:
            yield bell
        finally:
            self._bells[job_id].remove(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]

    async def _run(self) -> None:
        while not self._closed:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.warning("no news of jobs for now: Redis does not answer (%s)", type(error).__name__)
                await asyncio.sleep(0.5)

    async def _listen(self) -> None:
        async with self.polling.redis.pubsub() as subscription:
            await subscription.subscribe(CHANNEL)
            for bells in self._bells.values():  # what happened while nobody listened
                for bell in bells:
                    bell.ring()
            asked = False
            while not self._closed:
                message = await subscription.get_message(timeout=LOOK_SECONDS)
                if message is None:
                    # Nothing happened, or the connection is dead: the client says the same of both, and of a dead one
                    # says it at once, for ever.
                    if asked:
                        raise RedisTimeoutError("no answer to a PING")
                    await subscription.ping()
                asked = message is None
                if message and message["type"] == "message":
                    job_id, _, kind = message["data"].partition(" ")
                    self._tell(job_id, kind)

    def _tell(self, job_id: str, kind: str) -> None:
        for bell in self._bells.get(job_id, ()):
            if not bell.kinds or kind in bell.kinds:
                bell.ring()
