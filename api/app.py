"""The application: settings in, routers, middleware and error handlers attached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import Lifespan
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.edge.access import Gate
from api.edge.body import BodyLimit
from api.edge.context import RequestContext
from api.edge.methods import Methods, known_query
from api.edge.metrics import Metrics
from api.edge.problems import add_handlers
from api.edge.site import UnderRoot, route
from api.openapi import DESCRIPTION, TAGS, describe
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
    """The API for these settings (the process's own by default)."""
    configuration = configuration or settings()
    logs.configure(configuration.log_level, configuration.log_format)
    metrics = Metrics()
    tracers = telemetry.start(configuration.otlp_endpoint, "kernelscope-api")
    app = FastAPI(
        title="Kernelscope",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan(configuration, metrics),
        docs_url=None,  # the page has one of its own
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
            "exclude": lambda scope: route(scope) in UNTRACED,
        },
        generate_unique_id_function=lambda one: one.name,
    )
    app.state.metrics = metrics
    _guard(app, configuration, metrics)
    add_handlers(app)
    for module in ROUTES:
        app.include_router(module.router)
    describe(app)
    return app


def _lifespan(configuration: Settings, metrics: Metrics) -> Lifespan[FastAPI]:
    """What there is as long as the application runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = app.state.services = Services.open(configuration)
        _measure(services, metrics)
        if configuration.metrics_bind:
            metrics.serve(configuration.metrics_bind)
        services.news.start()
        yield
        await services.close()
        await asyncio.to_thread(telemetry.stop)

    return lifespan


def _measure(services: Services, metrics: Metrics) -> None:
    """Have the metrics tell of the record, of who waits, and of what for."""
    store, admission, pool = services.store, services.admission, services.pictures.pool
    metrics.watch(services.redis, services.news.waits, services.feeds.streams, store.seconds, store.errors)
    threads = current_default_thread_limiter().statistics
    metrics.gauge("kernelscope_threads_busy", "Threads that work on requests.", lambda: threads().borrowed_tokens)
    metrics.gauge("kernelscope_threads_waiting", "Requests without one.", lambda: threads().tasks_waiting)
    metrics.gauge("kernelscope_drawings_waiting", "Pictures that wait to be drawn.", lambda: pool.waiting)
    metrics.gauge("kernelscope_uploads_waiting", "Bodies that wait for room.", lambda: admission.bodies.waiting)
    metrics.gauge("kernelscope_checks_waiting", "Images to be checked.", lambda: admission.pixels.waiting)


def _guard(app: FastAPI, configuration: Settings, metrics: Metrics) -> None:
    """What a request passes before a route; what is added last comes first."""
    app.add_middleware(Methods)
    app.add_middleware(BodyLimit, limit=configuration.max_body_mb * 10**6)
    app.add_middleware(Gate)
    origins = list(configuration.cors_origins)
    if origins:
        methods, headers = ["GET", "POST", "DELETE"], ["*"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=EXPOSED
        )
    app.add_middleware(UnderRoot, root=configuration.root)
    if configuration.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(configuration.trusted_proxies))
    app.add_middleware(RequestContext, metrics=metrics, shared=bool(origins))
