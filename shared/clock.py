"""Redis's clock. Leases, deadlines and expiries are judged by it alone: machines' clocks may differ by hours."""

from __future__ import annotations

from redis import Redis

from shared.connection import redis_errors

STOPPED = "ks:clock"  # the time at which a test has stopped this clock; nothing else writes it


def now(redis: Redis) -> float:
    """Seconds since 1970, as `now()` in the scripts.

    Raises:
        StoreUnavailable.
    """
    with redis_errors(), redis.pipeline(transaction=False) as pipe:
        pipe.get(STOPPED)
        pipe.time()
        stopped, (seconds, microseconds) = pipe.execute()
    return float(stopped) if stopped else seconds + microseconds / 1e6
