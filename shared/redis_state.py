"""Whether Redis keeps what it is given: it takes writes, and forgets nothing of its own accord."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from shared.connection import redis_errors
from shared.errors import StoreUnavailable

FULL = 0.9  # of its memory, from which it is told
MEND = "set maxmemory-policy to noeviction"


@dataclass(frozen=True)
class Memory:
    """How full a Redis is, and what it does when there is no room left.

    Args:
        used: bytes.
        limit: bytes: its maxmemory, else all that the machine has; 0: it does not tell.
        policy: what it removes when it is full; `noeviction`: nothing, it takes no more.
        evicted: keys that it has removed so since it started.
    """

    used: int
    limit: int
    policy: str = "noeviction"
    evicted: int = 0

    @classmethod
    def of(cls, info: dict[str, Any]) -> Memory:
        """From Redis's `INFO memory` and `INFO stats`, together."""
        used, most, evicted = info.get("used_memory", 0), info.get("maxmemory", 0), info.get("evicted_keys", 0)
        if most:
            return cls(used, most, info.get("maxmemory_policy", "noeviction"), evicted)
        return cls(used, info.get("total_system_memory", 0), evicted=evicted)

    @property
    def ratio(self) -> float:
        """Used share of the limit, 0 where that is unknown."""
        return self.used / self.limit if self.limit else 0.0

    @property
    def evicts(self) -> bool:
        """Whether it removes what nobody told it to."""
        return self.policy != "noeviction"

    def check(self) -> list[str]:
        """What its operator should know.

        Raises:
            StoreUnavailable: when it is full it removes accepted jobs.
        """
        told = f"Redis removes keys when it is full (maxmemory-policy {self.policy})"
        if self.policy.startswith("allkeys-"):
            raise StoreUnavailable(f"{told}, accepted jobs among them; {MEND}")
        found = [f"{told}: sessions and idempotency keys would be forgotten; {MEND}"] if self.evicts else []
        if self.evicted:
            found.append(
                f"{self.evicted} keys were evicted since Redis started: jobs may be lost; {MEND} (CONFIG RESETSTAT "
                "ends this warning)"
            )
        if self.ratio >= FULL:
            found.append(f"Redis has used {self.ratio:.0%} of its memory; when it is full, no more jobs are taken")
        return found


def check(redis: Redis) -> list[str]:
    """That Redis takes writes and keeps them; returns what its operator should know all the same.

    Raises:
        StoreUnavailable: it does not answer, refuses writes, or removes jobs when it is full.
    """
    with redis_errors():
        redis.delete("ks:nothing")  # a write, of nothing: refused where any is, but for want of memory
        return Memory.of({**redis.info("memory"), **redis.info("stats")}).check()
