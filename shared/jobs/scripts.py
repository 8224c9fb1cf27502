"""The Lua scripts that change job records; each is atomic."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.commands.core import Script

from shared.connection import redis_errors

COMMON = ("common", "queue")  # prepended to each of the others
NAMES = (
    "submit",
    "retry",
    "claim",
    "next",
    "sent",
    "renew",
    "resolve",
    "commit",
    "finish",
    "release",
    "lapse",
    "cancel",
)


@cache
def text(name: str) -> str:
    """The source of a script in `shared/jobs/lua`, with the common parts before it."""
    folder = files("shared.jobs") / "lua"
    return "".join((folder / f"{part}.lua").read_text() for part in (*COMMON, name))


def script(redis: Redis, name: str) -> Script:
    """A script, registered with this Redis."""
    return redis.register_script(text(name))


class Scripts:
    """The scripts that change a live job's record, on one client.

    Args:
        redis: a client that decodes responses.
        lease_seconds: how long a claim is valid without a heartbeat.
    """

    def __init__(self, redis: Redis, lease_seconds: float = 20.0) -> None:
        self.redis = redis
        self.lease_seconds = lease_seconds
        self._scripts = {name: script(redis, name) for name in NAMES}

    def _run(self, name: str, *arguments: object, slice_id: str = "") -> Any:
        with redis_errors():
            return self._scripts[name](keys=[f"ks:slice:{slice_id}"] if slice_id else [], args=arguments)
