"""Loops that run in one process at a time: each in a thread, under a lock in Redis that also records its successes.

A lock lasts 3 s and is renewed by the main thread, for all loops in one call, so that a standby takes over within 5 s
of a kill -9 although a round may last longer than its lock. A round that lasts `ROUND_SECONDS` is regarded as hung: its
lock is no longer renewed, and another process takes over. Two processes in one loop do no harm: each change of the
record is one script, which does nothing if the other process was first.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from threading import Event, Thread

from redis import Redis

from shared.connection import redis_errors
from shared.errors import StoreUnavailable

log = logging.getLogger(__name__)

LOCK_SECONDS = 3.0
RENEW_SECONDS = 0.75  # between two renewals of the locks
POLL_SECONDS = 0.5  # between two checks whether a loop is due
ROUND_SECONDS = 60.0
OUTAGE_SECONDS = 2.0  # plus a quarter of a lease, without a call from any process: Redis was unavailable
GRACE = "ks:housekeeping:grace"  # exists after an outage, while workers renew their leases
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@dataclass(frozen=True)
class Loop:
    """A periodic task.

    Args:
        seconds: between the end of a round and the next one.
        action: one round. It ends within `ROUND_SECONDS`, and does no harm if another process does the same.
    """

    name: str
    seconds: float
    action: Callable[[], object]


class LoopRunner:
    """Runs one loop in this process."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.locked_until = -math.inf  # monotonic clock, like the other times
        self.began: float | None = None  # start of the current round
        self.succeeded: float | None = None
        self.failures = 0
        self.recorded: tuple[float | None, int] = (None, 0)  # the values of these two in Redis
        self._due = -math.inf

    def run_if_due(self) -> None:
        """Run one round, if it is due and this process holds the lock. Logs what the round raises."""
        now = time.monotonic()
        if now < self._due or now >= self.locked_until:
            return
        self.began = now
        try:
            self.loop.action()
            self.succeeded = time.monotonic()
        except StoreUnavailable as error:
            self.failures += 1
            log.warning("%s: a round was skipped: %s", self.loop.name, error)
        except Exception:  # a bug or an unexpected record: the other loops and the next round continue
            self.failures += 1
            log.exception("%s: a round failed", self.loop.name)
        finally:
            self.began = None
            self._due = time.monotonic() + self.loop.seconds

    @property
    def hangs(self) -> bool:
        """Whether the current round takes too long."""
        began = self.began
        return began is not None and time.monotonic() - began > ROUND_SECONDS


class Scheduler:
    """Runs the loops of this process and renews their locks.

    Args:
        lease_seconds: how long `GRACE` exists after an outage of Redis, so that workers can renew their leases. The
            calls of a standby show that there was no outage while it took over from another process.
    """

    def __init__(self, redis: Redis, loops: Sequence[Loop], lease_seconds: float = 20.0) -> None:
        self.redis = redis
        self.lease_seconds = lease_seconds
        self.runners = [LoopRunner(loop) for loop in loops]
        self.token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._renew = redis.register_script(files("api.housekeeping").joinpath("renew_locks.lua").read_text())
        self._release = redis.register_script(RELEASE)
        self._stop = Event()
        self._threads = [
            Thread(target=self._run, args=(each,), name=each.loop.name, daemon=True) for each in self.runners
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def renew_locks(self) -> None:
        """Acquire or renew the locks, and record successes and failures; called every `RENEW_SECONDS`.

        While Redis is unavailable this only logs a warning.
        """
        now = time.monotonic()
        results = [(each, each.succeeded, each.failures) for each in self.runners]
        arguments: list[str | int | float] = [
            self.token,
            int(LOCK_SECONDS * 1000),
            OUTAGE_SECONDS + self.lease_seconds / 4,
            int(self.lease_seconds * 1000),
        ]
        for each, succeeded, failures in results:
            before, counted = each.recorded
            since = int((now - succeeded) * 1000) if succeeded is not None and succeeded != before else ""
            arguments += [each.loop.name, each.loop.seconds, int(not each.hangs), since, failures - counted]
        try:
            with redis_errors():
                held: list[int] = self._renew(args=arguments)
        except StoreUnavailable as error:
            log.warning("housekeeping is paused: %s", error)
            return
        for (each, succeeded, failures), mine in zip(results, held, strict=True):
            each.recorded = succeeded, failures
            if mine:
                each.locked_until = now + LOCK_SECONDS

    def round(self) -> None:
        """Run every loop that is due once, without threads."""
        self.renew_locks()
        for each in self.runners:
            each.run_if_due()
        self.renew_locks()

    @property
    def alive(self) -> bool:
        """Whether no loop hangs."""
        return not any(each.hangs for each in self.runners)

    def stop(self, seconds: float = 5.0) -> None:
        """Stop after the current rounds, within this time at most, and release the locks for another process."""
        self._stop.set()
        end = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        try:
            with redis_errors():
                for each in self.runners:
                    if each.began is None:
                        self._release(keys=[f"ks:housekeeping:lock:{each.loop.name}"], args=[self.token])
        except StoreUnavailable:
            log.warning("Redis does not respond; the locks will expire by themselves")

    def _run(self, runner: LoopRunner) -> None:
        while not self._stop.wait(min(POLL_SECONDS, runner.loop.seconds)):
            runner.run_if_due()
