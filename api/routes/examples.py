"""The jobs that the OpenAPI document shows as examples of several routes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.schemas import (
    ActiveKernel,
    ExplainRequest,
    ItemResult,
    Job,
    Losses,
    Metrics,
    Progress,
    Status,
    Thumbnails,
    WeightsUsed,
)

JOB_ID = "944165909aaf421dab8c26d340c123cc"
IMAGE = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
WEIGHTS = WeightsUsed(
    source="vgg16-blocks1-2.safetensors", sha256="c82bec0ca9bb2a5bb1ccb4e05b2dd5d1a38d6b1e0f2b9a0b9fd4c1b2b6a3a0d1"
)
CREATED_AT = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)

_REQUEST = ExplainRequest(model="vgg16", layer="conv1_2", kernels=[18], images=[IMAGE])
_METRICS = Metrics(
    ssim=0.9983,
    ssim_window=11,
    ssim_paper=0.9981,
    mse_others=0.2365,
    mse_others_before=1.5893,
    mse_selected=0.0011,
    leakage=0.3176,
    sparsity=0.0044,
    invention=0.08,
    invention_by_layer={"conv1_1": 0.08},
    invention_beyond_blank=0.07,
)
_LOSSES = Losses(preservation=0.0064, suppression=0.3176, regularization=0.1165, total=0.4405)


def _job(status: Status, **fields: Any) -> Job:
    here = f"/jobs/{JOB_ID}"
    links = {"self": here, "results": f"{here}/results", "events": f"{here}/events"}
    links |= {"cancel": f"{here}/cancel", "retry": f"{here}/retry", "bundle": f"{here}/bundle.zip"}
    known: dict[str, Any] = {
        "started_at": None,
        "finished_at": None,
        "attempt": 0,
        "queue_position": None,
        "request": _REQUEST,
        "progress": Progress(completed=0, total=1, failed=0),
        "failed_items": 0,
        "results": [],
        "error": None,
        **fields,
    }
    expires_at = CREATED_AT + timedelta(days=30)
    return Job(id=JOB_ID, status=status, created_at=CREATED_AT, expires_at=expires_at, links=links, **known)


def _ended(status: Status, **fields: Any) -> Job:
    times = {
        "started_at": CREATED_AT + timedelta(milliseconds=9),
        "finished_at": CREATED_AT + timedelta(seconds=12),
    }
    progress = Progress(completed=1, total=1, failed=0)
    return _job(status, attempt=1, **{"progress": progress, **times, **fields})


def _artifacts(*names: str) -> dict[str, str]:
    return {name: f"/jobs/{JOB_ID}/artifacts/0/{name}" for name in names}


EXPLAINED = ItemResult(
    index=0,
    image=IMAGE,
    kernel=18,
    method="suppression",
    alpha=1.0,
    beta=1.0,
    status="succeeded",
    losses=_LOSSES,
    losses_float=_LOSSES,
    loss_start=1.5255,
    loss_blank=0.992,
    metrics=_METRICS,
    metrics_float=_METRICS,
    iterations=400,
    seconds=12.0,
    stopped="converged",
    precision="float32",
    weights=WEIGHTS,
    device="cpu",
    artifacts=_artifacts(
        *("optimized.png", "optimized.npy", "maps.npz", "history.json", "contrast.png", "feature_map.png"),
        *("original.png", "optimized_feature_map.png", "difference.png", "others.png", "panel.png", "sweep.png"),
    ),
)
RANKED = ItemResult(
    index=0,
    image=IMAGE,
    kernel=None,
    method="activations",
    alpha=1.0,
    beta=1.0,
    status="succeeded",
    ranking=[ActiveKernel(kernel=18, mean=2.31, max=9.75, active=0.93)],
    thumbnails=Thumbnails(columns=16, tile=56),
    weights=WEIGHTS,
    device="cpu",
    artifacts=_artifacts("activations.npz", "thumbnails.png"),
)

QUEUED_JOB = _job(Status.QUEUED, queue_position=1)
SUCCEEDED_JOB = _ended(Status.SUCCEEDED, results=[EXPLAINED])
CANCELLED_JOB = _ended(Status.CANCELLED, progress=Progress(completed=0, total=1, failed=0))
RANKED_JOB = _ended(
    Status.SUCCEEDED,
    request=_REQUEST.model_copy(update={"kernels": [], "methods": ["activations"]}),
    results=[RANKED],
)
