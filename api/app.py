"""The application: settings in, routers, middleware and error handlers attached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api.access import Gate
from api.body import BodyLimit
from api.context import RequestContext
from api.metrics import Metrics
from api.openapi import DESCRIPTION, TAGS, describe
from api.problems import add_handlers
from api.routes import activations, artifacts, comparisons, explain, health, jobs, models, page, problems, session
from api.services import Services
from shared import logs
from shared.settings import Settings, settings

EXPOSED = ("Location", "Link", "Retry-After", "X-Request-ID", "RateLimit", "RateLimit-Policy", "ETag", "Content-Range")


def create_app(configuration: Settings | None = None) -> FastAPI:
    """The API for these settings (the process's own by default)."""
    configuration = configuration or settings()
    logs.configure(configuration.log_level, configuration.log_format)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = app.state.services = Services.open(configuration)
        metrics.watch(services.redis)
        if configuration.metrics_bind:
            metrics.serve(configuration.metrics_bind)
        services.news.start()
        yield
        await services.close()

    app = FastAPI(
        title="Kernelscope",
        version="0.1.0",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.metrics = metrics
    app.add_middleware(BodyLimit, limit=configuration.max_body_mb * 10**6)
    app.add_middleware(Gate)
    origins = list(configuration.cors_origins)
    if origins:
        methods, headers = ["GET", "POST", "DELETE"], ["*"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=EXPOSED
        )
    app.add_middleware(RequestContext, metrics=metrics, shared=bool(origins))
    add_handlers(app)
    for module in (explain, activations, jobs, artifacts, comparisons, models, health, session, problems, page):
        app.include_router(module.router)
    describe(app)
    return app
