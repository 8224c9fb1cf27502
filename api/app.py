"""The application: settings in, routers and error handlers attached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api.body import BodyLimit
from api.problems import add_handlers
from api.routes import artifacts, explain, health, jobs, models, page, problems
from api.services import Services
from shared import logs
from shared.settings import Settings, settings

DESCRIPTION = """
Shows what any convolution kernel of a trained CNN responds to in a given image. `POST /explain` makes a job; poll
`GET /jobs/{id}` and fetch the pictures that its results name. Every error is an `application/problem+json` (RFC 9457).
"""


def create_app(configuration: Settings | None = None) -> FastAPI:
    """The API for these settings (the process's own by default)."""
    configuration = configuration or settings()
    logs.configure(configuration.log_level)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = Services.open(configuration)
        yield
        await app.state.services.close()

    app = FastAPI(title="Kernelscope", version="0.1.0", description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(BodyLimit, limit=configuration.max_body_mb * 10**6)
    add_handlers(app)
    for module in (explain, jobs, artifacts, models, health, problems, page):
        app.include_router(module.router)
    return app
