"""The FastAPI application, made from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import Lifespan
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.edge.access import AccessControl
from api.edge.body_limit import BodyLimit
from api.edge.context import RequestContext
from api.edge.methods import Methods, known_query
from api.edge.problems import add_handlers
from api.edge.prometheus import ApiMetrics
from api.edge.site import UnderRoot, route_path
from api.openapi import describe
from api.routes import (
    activations,
    artifacts,
    comparisons,
    datasets,
    explain,
    health,
    jobs,
    kernels,
    models,
    page,
    problems,
    session,
    surveys,
    webhooks,
)
from api.services import Services
from shared import logs, telemetry
from shared.settings import Settings, settings
from shared.version import VERSION

DESCRIPTION = """
Shows what any convolution kernel of a trained CNN responds to in a given image. `POST /explain` creates a job; wait for
it with `Prefer: wait=N`, poll `GET /jobs/{id}`, read `/jobs/{id}/events`, or receive a webhook (`webhook_url`); then
download the pictures that its results link to. Every error is an `application/problem+json` (RFC 9457) whose `type`
links to a page of this server. Where API keys are required, send `Authorization: Bearer <key>`.
"""
TAGS = [
    {"name": "explain", "description": "Create jobs."},
    {"name": "jobs", "description": "Follow jobs, download their files, cancel and delete them."},
    {"name": "datasets", "description": "Collections of images under one name."},
    {"name": "surveys", "description": "What kernels respond to in a data set."},
    {"name": "models", "description": "The networks and layers that can be explained."},
    {"name": "webhooks", "description": "The secret that signs webhooks."},
    {"name": "session", "description": "A cookie in place of an API key, for web pages."},
    {"name": "health", "description": "For operators and orchestrators."},
    {"name": "problems", "description": "What an error's `type` means."},
]

UNTRACED = ("/healthz", "/readyz", "/metrics")
EXPOSED = ("Location", "Link", "Retry-After", "X-Request-ID", "RateLimit", "RateLimit-Policy", "ETag", "Content-Range")


ROUTES = (
    explain,
    activations,
    jobs,
    artifacts,
    comparisons,
    datasets,
    surveys,
    kernels,
    models,
    webhooks,
    health,
    session,
    problems,
    page,
)


def create_app(configuration: Settings | None = None) -> FastAPI:
    """The API with these settings, by default those of the process."""
    configuration = configuration or settings()
    logs.configure(configuration.log_level, configuration.log_format)
    metrics = ApiMetrics()
    tracers = telemetry.start(configuration.otlp_endpoint, "kernelscope-api")
    app = FastAPI(
        title="Kernelscope",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan(configuration, metrics),
        docs_url=None,  # routes/page.py serves one
        redoc_url=None,
        dependencies=[Depends(known_query)],
        redirect_slashes=False,
        telemetry={
            "tracer_provider": tracers,
            "tracing": tracers is not None,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: route_path(scope) in UNTRACED,
        },
        generate_unique_id_function=lambda one: one.name,
    )
    app.state.metrics = metrics
    _add_middleware(app, configuration, metrics)
    add_handlers(app)
    for module in ROUTES:
        app.include_router(module.router)
    describe(app)
    return app


def _lifespan(configuration: Settings, metrics: ApiMetrics) -> Lifespan[FastAPI]:
    """Open the services when the application starts, and close them when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = app.state.services = Services.open(configuration)
        _add_metrics(services, metrics)
        if configuration.metrics_bind:
            metrics.serve(configuration.metrics_bind)
        services.updates.start()
        yield
        await services.close()
        await asyncio.to_thread(telemetry.stop)

    return lifespan


def _add_metrics(services: Services, metrics: ApiMetrics) -> None:
    """Add the metrics of the queue and of this process's own queues."""
    store, capacity, pool = services.store, services.capacity, services.pictures.pool
    metrics.register(services.redis, services.updates.waits, services.feeds.streams, store.seconds, store.errors)
    threads = current_default_thread_limiter().statistics
    metrics.gauge("kernelscope_threads_busy", "Threads that serve requests.", lambda: threads().borrowed_tokens)
    metrics.gauge("kernelscope_threads_waiting", "Requests waiting for one.", lambda: threads().tasks_waiting)
    metrics.gauge("kernelscope_drawings_waiting", "Pictures waiting to be drawn.", lambda: pool.waiting)
    metrics.gauge("kernelscope_uploads_waiting", "Bodies waiting for memory.", lambda: capacity.bodies.waiting)
    metrics.gauge("kernelscope_checks_waiting", "Images waiting to be checked.", lambda: capacity.pixels.waiting)


def _add_middleware(app: FastAPI, configuration: Settings, metrics: ApiMetrics) -> None:
    """The last one added is the outermost."""
    app.add_middleware(Methods)
    app.add_middleware(BodyLimit, limit=configuration.max_body_mb * 10**6)
    app.add_middleware(AccessControl)
    origins = list(configuration.cors_origins)
    if origins:
        methods, headers = ["GET", "POST", "DELETE"], ["*"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=EXPOSED
        )
    app.add_middleware(UnderRoot, root=configuration.root)
    if configuration.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(configuration.trusted_proxies))
    app.add_middleware(RequestContext, metrics=metrics, cross_origin=bool(origins))
