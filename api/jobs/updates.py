"""Notifications about jobs: one subscription to Redis for all requests that wait for one."""

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
RECHECK_SECONDS = 5.0  # after which a request reads the job without a notification: the subscription may have failed


@dataclass(eq=False)
class Subscription:
    """Notifications about one job."""

    kinds: tuple[str, ...]  # of events; empty: all
    _notified: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        """End the current wait, or the next one."""
        self._notified.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a notification since the last wait, at most this long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._notified.wait()
        self._notified.clear()


class JobUpdates:
    """Listens to Redis and notifies the subscriptions."""

    def __init__(self, polling: Polling) -> None:
        self.polling = polling
        self.stopping = False
        self.waits = Gauge("kernelscope_long_polls", "Requests that wait for a job to end.", registry=None)
        self._subscriptions: dict[str, list[Subscription]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._closed = False  # a cancellation alone may be lost in a command to Redis, see `_Feed`

    def start(self) -> None:
        """Start to listen, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End all waits: the process is stopping. From now on no wait lasts."""
        self.stopping = True
        self._notify_all()

    async def close(self) -> None:
        """Stop listening."""
        self._closed = True
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @contextmanager
    def subscribe(self, job_id: str, *kinds: str) -> Iterator[Subscription]:
        """Subscribe to a job's events, all kinds or these."""
        subscription = Subscription(kinds)
        if self.stopping:
            subscription.notify()
        self._subscriptions[job_id].append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[job_id].remove(subscription)
            if not self._subscriptions[job_id]:
                del self._subscriptions[job_id]

    async def _run(self) -> None:
        while not self._closed:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.warning("no notifications about jobs for now: Redis does not respond (%s)", type(error).__name__)
                await asyncio.sleep(0.5)

    async def _listen(self) -> None:
        async with self.polling.redis.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)
            self._notify_all()  # events may have been missed
            pinged = False
            while not self._closed:
                message = await pubsub.get_message(timeout=RECHECK_SECONDS)
                if message is None:
                    # There was no event, or the connection is dead: redis-py returns None in both cases, and for a dead
                    # connection at once, each time.
                    if pinged:
                        raise RedisTimeoutError("no answer to a PING")
                    await pubsub.ping()
                pinged = message is None
                if message and message["type"] == "message":
                    job_id, _, kind = message["data"].partition(" ")
                    for subscription in self._subscriptions.get(job_id, ()):
                        if not subscription.kinds or kind in subscription.kinds:
                            subscription.notify()

    def _notify_all(self) -> None:
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.notify()
