"""What the workers say of themselves: the API, which has no torch, knows networks' availability from nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError
from redis import Redis

from shared import catalogue
from shared.catalogue import Network
from shared.connection import redis_errors
from shared.errors import brief
from shared.schemas import Preprocessing

log = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)

HEARTBEAT_SECONDS = 3
HEARTBEAT_LIFETIME = 15


class NetworkState(BaseModel):
    """Whether a worker can run a network, with which weights, and why not."""

    available: bool
    reason: str = Field(description="why it is not available; or where the weights are from")
    source: str | None = Field(None, description="the weights file's name")
    sha256: str | None = Field(None, description="SHA-256 of the weights file, once it was read")
    preprocessing: Preprocessing | None = Field(None, description="what the network is fed")
    layers: list[str] = Field(default_factory=list, description="layers that the weights cover")
    whole: bool = Field(False, description="whether that is all of them, and every other node with maps")
    refused: list[str] = Field(default_factory=list, description="files of the weights folder not used, and why")

    def covers(self, layer: str) -> bool:
        """Whether the weights reach a layer of this network."""
        return self.available and (self.whole or layer in self.layers)


class WorkerState(BaseModel):
    """One worker process."""

    id: str
    device: str
    started_at: float
    ready: bool = Field(description="false while it still loads its networks")
    networks: dict[str, NetworkState]
    store: str | None = Field(None, description="identity of its object store, where that answers")
    version: str = Field("", description="of Kernelscope, as it is told")


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
    return [state for text in texts if text and (state := _read(WorkerState, text))]


def tell(redis: Redis, networks: Sequence[Network]) -> None:
    """Say which networks are registered, beside those that come with the program. They stay known for good."""
    if networks:
        with redis_errors():
            redis.hset("ks:networks", mapping={one.name: one.model_dump_json() for one in networks})


def told(redis: Redis) -> dict[str, Network]:
    """The registered networks by name, as workers have told of them last."""
    with redis_errors():
        texts = redis.hgetall("ks:networks")
    return {name: one for name, text in sorted(texts.items()) if (one := _read(Network, text))}


@lru_cache(maxsize=256)  # a poll asks for all of them; and who cannot be read is told of once
def _read(kind: type[T], text: str) -> T | None:
    """What a worker has said; None where it is of a version that says it in another way."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        log.warning("what a worker says cannot be read: %s: %s", brief(text), error.errors()[0]["msg"])
        return None


def network(redis: Redis, name: str) -> Network:
    """The network of this name: one that comes with the program, or that a worker has told of.

    Raises:
        UnknownModel: naming the networks that exist.
    """
    return catalogue.networks().get(name) or catalogue.network(name, told(redis))


def able(networks: Mapping[str, NetworkState], need: str) -> bool:
    """Whether networks in these states can run what needs a network and a layer, such as "vgg16 conv3_3"."""
    model, _, layer = need.partition(" ")
    return model in networks and networks[model].covers(layer)


def outdated(workers: list[WorkerState]) -> list[str]:
    """A sentence on each worker of a version that cannot run what is submitted now: it would try, and fail."""
    return [
        f"worker {worker.id} is of an earlier version, which cannot run jobs of this one; stop it (docs/operations.md)"
        for worker in workers
        if not worker.version
    ]


def elsewhere(workers: list[WorkerState], store: str) -> list[str]:
    """A sentence on each worker whose object store is not this one: no job that it runs can succeed."""
    return [
        f"worker {worker.id} has another object store than the API; give both the same KERNELSCOPE_STORE_URL, "
        "reachable by both"
        for worker in workers
        if worker.store not in (None, store)
    ]
