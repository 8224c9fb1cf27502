"""The state of the housekeeping loops, stored in Redis: when each last succeeded, and how often it failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redis import Redis

from shared.connection import redis_errors

# Not `ks:housekeeping`: an earlier release used that key for its lock, a string.
SUCCESS = "ks:housekeeping:success"  # hash: loop → time by Redis's clock, and seconds between two rounds
FAILURES = "ks:housekeeping:failures"  # hash: loop → number of failed rounds
LATE_SECONDS = 12.0  # beyond the time between two rounds; a standby takes over much earlier
CONSEQUENCES = "leases do not expire, no webhooks are sent, nothing is cleaned up"
START = "start `python -m api.housekeeping`"


@dataclass(frozen=True)
class LoopState:
    """The state of one loop.

    Args:
        age: seconds since the end of the last successful round, by Redis's clock.
        period: seconds between two rounds.
        failures: number of failed rounds, ever.
    """

    name: str
    age: float
    period: float
    failures: int

    @property
    def late(self) -> bool:
        """Whether the loop should have succeeded again by now."""
        return self.age > self.period + LATE_SECONDS


def states(redis: Redis) -> list[LoopState]:
    """The state of every loop that ever ran, by name.

    Raises:
        StoreUnavailable.
    """
    with redis_errors(), redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(SUCCESS)
        pipe.hgetall(FAILURES)
        (seconds, _), succeeded, failed = pipe.execute()
    found = []
    for name, text in sorted(succeeded.items()):
        at, period = map(float, text.split())
        found.append(LoopState(name, max(0.0, seconds - at), period, int(failed.get(name, 0))))
    return found


def warnings(loops: list[LoopState]) -> Iterator[str]:
    """Warnings about loops that do not run, and how to start them."""
    frequent = [loop for loop in loops if loop.period <= LATE_SECONDS]
    if not frequent:
        yield f"housekeeping has never run: {CONSEQUENCES}; {START}"
    elif all(loop.late for loop in frequent):
        age = min(loop.age for loop in frequent)
        yield f"housekeeping has not run for {age:.0f} s: {CONSEQUENCES}; {START}"
    else:
        for loop in loops:
            if loop.late:
                yield f"housekeeping: loop {loop.name} has not succeeded for {loop.age:.0f} s; see its log"
