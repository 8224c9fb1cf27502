"""Heartbeats of workers, with their networks. From them the API, which has no torch, knows what is available."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, TypeVar

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
    """Whether a worker can run a network, and with which weights."""

    available: bool
    reason: str = Field(description="why the network is not available; or where the weights are from")
    source: str | None = Field(None, description="name of the weights file")
    sha256: str | None = Field(None, description="SHA-256 of the weights file, once it has been read")
    preprocessing: Preprocessing | None = Field(None, description="preprocessing of the input")
    layers: list[str] = Field(default_factory=list, description="names of the layers that the weights cover")
    whole: bool = Field(False, description="whether the weights cover all layers and nodes")
    failure: Literal["temporary", "final"] | None = Field(
        None,
        description="set if it could not be loaded. `temporary`: another attempt is running or follows soon; `final`: "
        "several have failed",
    )
    refused: list[str] = Field(default_factory=list, description="unusable files in the weights folder, and why")

    def covers(self, layer: str) -> bool:
        """Whether the weights cover this layer."""
        return self.available and (self.whole or layer in self.layers)


class WorkerState(BaseModel):
    """One worker process."""

    id: str
    device: str
    started_at: float
    ready: bool = Field(description="false while it is loading its networks")
    networks: dict[str, NetworkState]
    store: str | None = Field(None, description="identity of its object store; null if that does not respond")
    version: str = Field("", description="version of Kernelscope; empty for versions that do not send it")


def publish(redis: Redis, state: WorkerState) -> None:
    """Send a heartbeat. A worker is regarded as dead 15 s after its last one."""
    with redis_errors(), redis.pipeline(transaction=True) as pipe:
        pipe.set(f"ks:worker:{state.id}", state.model_dump_json(), ex=HEARTBEAT_LIFETIME)
        pipe.sadd("ks:workers", state.id)
        pipe.execute()


def retire(redis: Redis, worker_id: str) -> None:
    """Remove a worker that stops."""
    with redis_errors():
        redis.delete(f"ks:worker:{worker_id}")
        redis.srem("ks:workers", worker_id)


def living(redis: Redis) -> list[WorkerState]:
    """The workers with a heartbeat in the last 15 s."""
    with redis_errors():
        ids = sorted(redis.smembers("ks:workers"))
        texts = redis.mget([f"ks:worker:{worker}" for worker in ids]) if ids else []
        dead = [worker for worker, text in zip(ids, texts, strict=True) if text is None]
        if dead:
            redis.srem("ks:workers", *dead)
    return [state for text in texts if text and (state := _parsed(WorkerState, text))]


def register(redis: Redis, networks: Sequence[Network]) -> None:
    """Store registered networks, which do not come with the program. They are never removed."""
    if networks:
        with redis_errors():
            redis.hset("ks:networks", mapping={one.name: one.model_dump_json() for one in networks})


def registered(redis: Redis) -> dict[str, Network]:
    """The registered networks by name, as last stored by a worker."""
    with redis_errors():
        texts = redis.hgetall("ks:networks")
    return {name: one for name, text in sorted(texts.items()) if (one := _parsed(Network, text))}


@lru_cache(maxsize=256)  # every poll reads all of them; also, unreadable ones are logged only once
def _parsed(kind: type[T], text: str) -> T | None:
    """An object that a worker has stored; None if it cannot be read, as it is of a different version."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        log.warning("the data of a worker cannot be read: %s: %s", brief(text), error.errors()[0]["msg"])
        return None


def network(redis: Redis, name: str) -> Network:
    """The network with this name, one that comes with the program or that a worker has registered.

    Raises:
        UnknownModel: its message lists the networks that exist.
    """
    return catalogue.networks().get(name) or catalogue.network(name, registered(redis))


def able(networks: Mapping[str, NetworkState], need: str) -> bool:
    """Whether these networks cover a need, which is a network and a layer such as "vgg16 conv3_3"."""
    model, _, layer = need.partition(" ")
    return model in networks and networks[model].covers(layer)


def given_up(workers: Sequence[WorkerState], need: str) -> str | None:
    """Why no worker meets a need or will soon try to; None if one does, or if no worker has tried in vain."""
    states = [worker.networks[model] for worker in workers if (model := need.partition(" ")[0]) in worker.networks]
    if any(able(worker.networks, need) for worker in workers) or any(one.failure == "temporary" for one in states):
        return None
    return next((one.reason for one in states if one.failure == "final"), None)


def outdated(workers: list[WorkerState]) -> list[str]:
    """A warning for each worker of a version that would fail to run jobs of this one."""
    return [
        f"worker {worker.id} has an earlier version, which cannot run jobs of this one; stop it (docs/operations.md)"
        for worker in workers
        if not worker.version
    ]


def elsewhere(workers: list[WorkerState], store: str) -> list[str]:
    """A warning for each worker with a different object store: no job that it runs can succeed."""
    return [
        f"worker {worker.id} has a different object store than the API; set the same KERNELSCOPE_STORE_URL for both"
        for worker in workers
        if worker.store not in (None, store)
    ]
