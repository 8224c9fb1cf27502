"""`/healthz`: the process lives. `/readyz`: it can take jobs."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from api.services import Access
from shared import workers

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
def readyz(services: Access) -> Ready:
    """Redis and the object store answer. 503 with the reason where they do not."""
    living = workers.living(services.redis)
    services.store.has(ABSENT)
    return Ready(workers=[_info(worker) for worker in living])


def _info(worker: workers.WorkerState) -> WorkerInfo:
    networks = [name for name, state in worker.networks.items() if state.available]
    return WorkerInfo(id=worker.id, device=worker.device, ready=worker.ready, networks=networks)
