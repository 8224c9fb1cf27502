"""Checks that Redis accepts writes and does not evict keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from shared.connection import redis_errors
from shared.errors import StoreUnavailable

FULL = 0.9  # used fraction of the memory from which there is a warning
FIX = "set maxmemory-policy to noeviction"


@dataclass(frozen=True)
class Memory:
    """Redis's memory and its eviction policy.

    Args:
        used: bytes.
        limit: bytes: its maxmemory, or else all memory of the machine; 0: unknown.
        policy: what it evicts when it is full; `noeviction`: nothing, it accepts no more writes.
        evicted: number of keys evicted since it started.
    """

    used: int
    limit: int
    policy: str = "noeviction"
    evicted: int = 0

    @classmethod
    def of(cls, info: dict[str, Any]) -> Memory:
        """From the fields of Redis's `INFO memory` and `INFO stats`."""
        used, most, evicted = info.get("used_memory", 0), info.get("maxmemory", 0), info.get("evicted_keys", 0)
        if most:
            return cls(used, most, info.get("maxmemory_policy", "noeviction"), evicted)
        return cls(used, info.get("total_system_memory", 0), evicted=evicted)

    @property
    def ratio(self) -> float:
        """Used fraction of the limit; 0 where that is unknown."""
        return self.used / self.limit if self.limit else 0.0

    @property
    def evicts(self) -> bool:
        """Whether it evicts keys when it is full."""
        return self.policy != "noeviction"

    def check(self) -> list[str]:
        """Warnings for the operator.

        Raises:
            StoreUnavailable: when it is full, it evicts accepted jobs.
        """
        evicts = f"Redis evicts keys when it is full (maxmemory-policy {self.policy})"
        if self.policy.startswith("allkeys-"):
            raise StoreUnavailable(f"{evicts}, including accepted jobs; {FIX}")
        found = [f"{evicts}, including sessions and idempotency keys; {FIX}"] if self.evicts else []
        if self.evicted:
            found.append(
                f"{self.evicted} keys were evicted since Redis started: jobs may be lost; {FIX} (CONFIG RESETSTAT "
                "clears this warning)"
            )
        if self.ratio >= FULL:
            found.append(f"Redis has used {self.ratio:.0%} of its memory; when it is full, no more jobs are accepted")
        return found


def check(redis: Redis) -> list[str]:
    """Check that Redis accepts writes and keeps them. Returns warnings for the operator.

    Raises:
        StoreUnavailable: it does not respond, rejects writes, or evicts jobs when it is full.
    """
    with redis_errors():
        redis.delete("ks:nothing")  # a write without effect: fails like any other, except for lack of memory
        return Memory.of({**redis.info("memory"), **redis.info("stats")}).check()
