"""`/healthz`: the process lives. `/readyz`: it can take jobs. `/metrics`: how it fares."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, Field

from api.services import Opened
from shared.errors import NoSuchPath
from shared.version import told
from shared.workers import WorkerState

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class WorkerInfo(BaseModel):
    """A worker as readiness tells it; whose it is and what it has, only to those who would be answered elsewhere."""

    id: str | None = None
    device: str | None = None
    ready: bool
    networks: list[str] | None = None
    version: str | None = None


class Ready(BaseModel):
    """Jobs are taken; workers are told but not required, since jobs may queue until one comes."""

    status: str = "ready"
    version: str | None = None
    workers: list[WorkerInfo]
    warnings: list[str] | None = Field(None, description="what the operator should see to; jobs are taken all the same")


@router.get("/healthz")
async def healthz() -> Alive:
    """The process is alive."""
    return Alive()


@router.get("/readyz", response_model_exclude_unset=True)
async def readyz(request: Request, services: Opened) -> Ready:
    """Redis and the object store answer, take what is written and keep it. 503 with the reason where they do not.

    Looked at once a second at most. Where keys are needed, who sends none is told how many workers there are and which
    are ready, and no more.
    """
    state = await services.state()
    if not await services.access.lets_in(request):
        return Ready(status="ready", workers=[WorkerInfo(ready=worker.ready) for worker in state.workers])
    workers = [_info(worker) for worker in state.workers]
    return Ready(status="ready", version=told(), workers=workers, warnings=state.warnings)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, services: Opened) -> Response:
    """Prometheus metrics of this process and of the queue, unless they have an address of their own."""
    if services.settings.metrics_bind:
        raise NoSuchPath("the metrics have an address of their own (KERNELSCOPE_METRICS_BIND)")
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _info(worker: WorkerState) -> WorkerInfo:
    networks = [name for name, state in worker.networks.items() if state.available]
    return WorkerInfo(id=worker.id, device=worker.device, ready=worker.ready, networks=networks, version=worker.version)
