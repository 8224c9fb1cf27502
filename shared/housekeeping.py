"""When each loop of housekeeping last came to a good end, as every process may read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redis import Redis

from shared.connection import redis_errors

# Not `ks:housekeeping`: that was the lock of one release, which finds it a string if it is installed again.
SUCCESS = "ks:housekeeping:success"  # hash: loop → time of Redis, and seconds between two of its rounds
FAILURES = "ks:housekeeping:failures"  # hash: loop → how many of its rounds failed
LATE_SECONDS = 12.0  # beyond the time between two rounds: a standby has taken over long before
START = "start `python -m api.housekeeping`"


@dataclass(frozen=True)
class LoopState:
    """How one loop fares.

    Args:
        age: seconds since the end of the last round that succeeded, by the clock of Redis.
        period: seconds between two rounds.
        failures: rounds that failed, ever.
    """

    name: str
    age: float
    period: float
    failures: int

    @property
    def late(self) -> bool:
        """Whether it is time to see to it."""
        return self.age > self.period + LATE_SECONDS


def states(redis: Redis) -> list[LoopState]:
    """Of every loop that ever ran, by name.

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
    """What stands still, and how to set it going."""
    frequent = [loop for loop in loops if loop.period <= LATE_SECONDS]
    if not frequent:
        yield f"no housekeeping has ever run: leases, webhooks and retention stand still; {START}"
    elif all(loop.late for loop in frequent):
        age = min(loop.age for loop in frequent)
        yield f"no housekeeping has run for {age:.0f} s: leases, webhooks and retention stand still; {START}"
    else:
        for loop in loops:
            if loop.late:
                yield f"housekeeping: its loop {loop.name} has not succeeded for {loop.age:.0f} s; its log says why"
