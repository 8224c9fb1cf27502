"""`/healthz`: liveness. `/readyz`: readiness. `/metrics`: Prometheus metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, Field

from api.openapi import PUBLIC, example, refusals
from api.services import ServicesDep
from shared.errors import NoSuchPath, StoreUnavailable
from shared.version import VERSION, version_text
from shared.workers import WorkerState

router = APIRouter(tags=["health"])

RELEASE = {"version": f"{VERSION} (94416590)"}
WORKER = {"id": "host-4711", "device": "cpu", "ready": True, "networks": ["vgg16", "vgg_mini"], **RELEASE}
READY = {"status": "ready", "workers": [WORKER], "warnings": [], **RELEASE}


class Alive(BaseModel):
    """The process responds."""

    status: str = "alive"


class WorkerInfo(BaseModel):
    """A connected worker. All fields but `ready` are sent only to callers with access to the API."""

    id: str | None = None
    device: str | None = None
    ready: bool
    networks: list[str] | None = None
    version: str | None = None


class Ready(BaseModel):
    """Jobs are accepted. No worker is required: jobs wait in the queue until one connects."""

    status: str = "ready"
    version: str | None = None
    workers: list[WorkerInfo]
    warnings: list[str] | None = Field(None, description="problems that the operator should solve; jobs are accepted")


@router.get(
    "/healthz",
    responses={**example(200, {"status": "alive"}), **refusals(public=True)},
    openapi_extra=PUBLIC,
)
async def healthz() -> Alive:
    """The process is alive."""
    return Alive()


@router.get(
    "/readyz",
    response_model_exclude_unset=True,
    responses={**example(200, READY), **refusals(StoreUnavailable, public=True)},
    openapi_extra=PUBLIC,
)
async def readyz(request: Request, services: ServicesDep) -> Ready:
    """Redis and the object store respond, accept writes and keep them. 503 with the reason if they do not.

    Checked at most once a second. Where API keys are required, a request without one receives only the number of
    workers and which of them are ready.
    """
    state = await services.readiness()
    if not await services.access.is_authorized(request):
        return Ready(status="ready", workers=[WorkerInfo(ready=worker.ready) for worker in state.workers])
    workers = [_info(worker) for worker in state.workers]
    return Ready(status="ready", version=version_text(), workers=workers, warnings=state.warnings)


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals(NoSuchPath))
def metrics(request: Request, services: ServicesDep) -> Response:
    """Prometheus metrics of this process and of the queue. 404 if they are served on an address of their own."""
    if services.settings.metrics_bind:
        raise NoSuchPath("the metrics have an address of their own (KERNELSCOPE_METRICS_BIND)")
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _info(worker: WorkerState) -> WorkerInfo:
    networks = [name for name, state in worker.networks.items() if state.available]
    return WorkerInfo(id=worker.id, device=worker.device, ready=worker.ready, networks=networks, version=worker.version)
