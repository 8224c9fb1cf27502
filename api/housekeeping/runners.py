"""Loops that run in one process at a time: each in a thread, under a lock in Redis, with its last success on record.

A lock lasts 3 s and is renewed by the main thread, for all loops in one call, so that a standby takes over within 5 s
of a kill -9 while a round may last longer than its lock. A round that has lasted `ROUND_SECONDS` is taken to hang: its
lock is left to run out, and another process does the work. Two processes in one loop do no harm: each change of the
record is one script, which does nothing where the other was first.
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
from shared.housekeeping import FAILURES, SUCCESS

log = logging.getLogger(__name__)

LOCK_SECONDS = 3.0
HOLD_SECONDS = 0.75  # between two renewals
POLL_SECONDS = 0.5  # between two looks of a loop at whether it is its turn
ROUND_SECONDS = 60.0
OUTAGE_SECONDS = 2.0  # and a quarter of a lease, without any process coming through: Redis was away
GRACE = "ks:housekeeping:grace"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@dataclass(frozen=True)
class Loop:
    """Something that is done again and again.

    Args:
        seconds: between the end of a round and the next one.
        action: one round. It ends within `ROUND_SECONDS`, and does no harm where another process does the same.
    """

    name: str
    seconds: float
    action: Callable[[], object]


class Runner:
    """One loop in this process."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.held_until = -math.inf  # on the monotonic clock, as the rest
        self.began: float | None = None  # the round that runs
        self.succeeded: float | None = None
        self.failures = 0
        self.noted: tuple[float | None, int] = (None, 0)  # what is on record of these two
        self._due = -math.inf

    def turn(self) -> None:
        """One round, if it is ours to do and due. Nothing that it raises gets out."""
        now = time.monotonic()
        if now < self._due or now >= self.held_until:
            return
        self.began = now
        try:
            self.loop.action()
            self.succeeded = time.monotonic()
        except StoreUnavailable as error:
            self.failures += 1
            log.warning("%s: not now: %s", self.loop.name, error)
        except Exception:  # a bug, or a record that nobody foresaw: the other loops and the next round go on
            self.failures += 1
            log.exception("%s: a round failed", self.loop.name)
        finally:
            self.began = None
            self._due = time.monotonic() + self.loop.seconds

    @property
    def hangs(self) -> bool:
        """Whether its round lasts too long."""
        began = self.began
        return began is not None and time.monotonic() - began > ROUND_SECONDS


class Keeper:
    """The loops of this process, and their locks.

    Args:
        lease_seconds: for which `GRACE` is there after an outage of Redis, so that workers can be heard again. A
            standby that comes through shows that there was none while one process took over from another.
    """

    def __init__(self, redis: Redis, loops: Sequence[Loop], lease_seconds: float = 20.0) -> None:
        self.redis = redis
        self.lease_seconds = lease_seconds
        self.runners = [Runner(loop) for loop in loops]
        self.token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._hold = redis.register_script(files("api.housekeeping").joinpath("hold.lua").read_text())
        self._release = redis.register_script(RELEASE)
        self._stop = Event()
        self._threads = [
            Thread(target=self._run, args=(each,), name=each.loop.name, daemon=True) for each in self.runners
        ]

    def start(self) -> None:
        """Begin to run whatever is ours to do."""
        for thread in self._threads:
            thread.start()

    def hold(self) -> None:
        """Take or renew the locks, and note what was done: once in `HOLD_SECONDS`.

        Redis being away is sat out.
        """
        now = time.monotonic()
        told = [(each, each.succeeded, each.failures) for each in self.runners]
        arguments: list[str | int | float] = [
            self.token,
            int(LOCK_SECONDS * 1000),
            OUTAGE_SECONDS + self.lease_seconds / 4,
            int(self.lease_seconds * 1000),
        ]
        for each, succeeded, failures in told:
            before, counted = each.noted
            since = int((now - succeeded) * 1000) if succeeded is not None and succeeded != before else ""
            arguments += [each.loop.name, each.loop.seconds, int(not each.hangs), since, failures - counted]
        try:
            with redis_errors():
                held: list[int] = self._hold(args=arguments)
                if 2 in held:
                    self._forget_others()
        except StoreUnavailable as error:
            log.warning("no housekeeping now: %s", error)
            return
        for (each, succeeded, failures), mine in zip(told, held, strict=True):
            each.noted = succeeded, failures
            if mine:
                each.held_until = now + LOCK_SECONDS

    def round(self) -> None:
        """One turn of every loop, without threads."""
        self.hold()
        for each in self.runners:
            each.turn()
        self.hold()

    @property
    def alive(self) -> bool:
        """Whether no loop hangs."""
        return not any(each.hangs for each in self.runners)

    def stop(self, seconds: float = 5.0) -> None:
        """End after the rounds that run, at the latest in so many seconds; another process may take over at once."""
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
            log.warning("Redis does not answer; the locks run out by themselves")

    def _run(self, runner: Runner) -> None:
        while not self._stop.wait(min(POLL_SECONDS, runner.loop.seconds)):
            runner.turn()

    def _forget_others(self) -> None:
        """A loop of another release is not missed."""
        known = {each.loop.name for each in self.runners}
        for key in (SUCCESS, FAILURES):
            if others := [name for name in self.redis.hkeys(key) if name not in known]:
                self.redis.hdel(key, *others)
