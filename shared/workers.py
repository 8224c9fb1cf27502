"""What the workers say of themselves: the API, which has no torch, knows networks' availability from nowhere else."""

from __future__ import annotations

import socket
import sys

from pydantic import BaseModel, Field
from redis import Redis

from shared.errors import StoreUnavailable
from shared.jobs.record import connect, redis_errors
from shared.settings import settings

HEARTBEAT_SECONDS = 3
HEARTBEAT_LIFETIME = 15


class NetworkState(BaseModel):
    """Whether a worker can run a network, with which weights, and why not."""

    available: bool
    reason: str = Field(description="why it is not available; or where the weights are from")
    source: str | None = Field(None, description="the weights file's name")
    sha256: str | None = Field(None, description="SHA-256 of the weights file, once it was read")
    layers: list[str] = Field(default_factory=list, description="layers that the weights cover")
    refused: list[str] = Field(default_factory=list, description="files of the weights folder not used, and why")


class WorkerState(BaseModel):
    """One worker process."""

    id: str
    device: str
    started_at: float
    ready: bool = Field(description="false while it still loads its networks")
    networks: dict[str, NetworkState]


def publish(redis: Redis, state: WorkerState) -> None:
    """Say that this worker lives; it is forgotten 15 s after its last word."""
    with redis_errors(), redis.pipeline(transaction=True) as pipe:
        pipe.set(f"ks:worker:{state.id}", state.model_dump_json(), ex=HEARTBEAT_LIFETIME)
        pipe.sadd("ks:workers", state.id)
        pipe.execute()


def retire(redis: Redis, worker_id: str) -> None:
    """Say that this worker stops."""
    with redis_errors():
        redis.delete(f"ks:worker:{worker_id}")
        redis.srem("ks:workers", worker_id)


def living(redis: Redis) -> list[WorkerState]:
    """The workers that have spoken in the last 15 s."""
    with redis_errors():
        ids = sorted(redis.smembers("ks:workers"))
        texts = redis.mget([f"ks:worker:{worker}" for worker in ids]) if ids else []
        dead = [worker for worker, text in zip(ids, texts, strict=True) if text is None]
        if dead:
            redis.srem("ks:workers", *dead)
    return [WorkerState.model_validate_json(text) for text in texts if text]


def main() -> int:
    """`python -m shared.workers`: is a worker of this host alive? A container's health check."""
    host = socket.gethostname()
    try:
        names = [worker.id for worker in living(connect(settings().redis_url.get_secret_value()))]
    except StoreUnavailable:
        return 0  # a Redis that is away is no fault of the worker, which waits for it
    return 0 if any(name.rsplit("-", 1)[0] == host for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
