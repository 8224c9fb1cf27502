"""`/healthz`: the process lives. `/readyz`: it can take jobs. `/metrics`: how it fares."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel

from api.services import Opened
from shared import workers
from shared.errors import NoSuchPath

router = APIRouter(tags=["health"])

ABSENT = "0" * 64


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class WorkerInfo(BaseModel):
    """A worker as readiness tells it."""

    id: str
    device: str
    ready: bool
    networks: list[str]


class Ready(BaseModel):
    """Jobs are taken; workers are told but not required, since jobs may queue until one comes."""

    status: str = "ready"
    workers: list[WorkerInfo]


@router.get("/healthz")
async def healthz() -> Alive:
    """The process is alive."""
    return Alive()


@router.get("/readyz")
def readyz(services: Opened) -> Ready:
    """Redis and the object store answer. 503 with the reason where they do not."""
    living = workers.living(services.redis)
    services.store.has(ABSENT)
    return Ready(workers=[_info(worker) for worker in living])


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, services: Opened) -> Response:
    """Prometheus metrics of this process and of the queue, unless they have an address of their own."""
    if services.settings.metrics_bind:
        raise NoSuchPath("the metrics have an address of their own (KERNELSCOPE_METRICS_BIND)")
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _info(worker: workers.WorkerState) -> WorkerInfo:
    networks = [name for name, state in worker.networks.items() if state.available]
    return WorkerInfo(id=worker.id, device=worker.device, ready=worker.ready, networks=networks)
