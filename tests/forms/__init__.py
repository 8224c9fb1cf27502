"""What released versions kept in Redis and in the store, and how they read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis import Redis

FORM_1 = Path(__file__).with_name("form1.json")


def load(form: Any, redis: Redis, folder: Path) -> None:
    """As it lay."""
    for key, kept in form["redis"].items():
        value = kept["value"]
        match kept["kind"]:
            case "string":
                redis.set(key, value)
            case "hash":
                redis.hset(key, mapping=value)
            case "list":
                redis.rpush(key, *value)
            case "set":
                redis.sadd(key, *value)
            case "zset":
                redis.zadd(key, dict(value))
            case "stream":
                for name, entry in value:
                    redis.xadd(key, entry, name)
    for name, text in form["store"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
