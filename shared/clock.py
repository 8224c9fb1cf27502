"""Redis's clock. All leases, deadlines and expiry times use it, as the clocks of machines may differ by hours."""

from __future__ import annotations

from redis import Redis

from shared.connection import redis_errors

STOPPED = "ks:clock"  # written by tests only: the time at which the clock is stopped


def now(redis: Redis) -> float:
    """Seconds since 1970, like `now()` in the Lua scripts.

    Raises:
        StoreUnavailable.
    """
    with redis_errors(), redis.pipeline(transaction=False) as pipe:
        pipe.get(STOPPED)
        pipe.time()
        stopped, (seconds, microseconds) = pipe.execute()
    return float(stopped) if stopped else seconds + microseconds / 1e6
