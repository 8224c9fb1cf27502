"""`GET /problems/{slug}`: the page to which an error's `type` links."""

from __future__ import annotations

from inspect import cleandoc

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.openapi import PUBLIC, refusals
from shared.errors import NoSuchPath, brief, error_types

router = APIRouter(prefix="/problems", tags=["problems"])


@router.get(
    "/{slug}",
    response_class=PlainTextResponse,
    responses=refusals(NoSuchPath, public=True),
    openapi_extra=PUBLIC,
)
def get_problem(slug: str) -> str:
    """What a problem type means."""
    kind = error_types().get(slug)
    if kind is None:
        raise NoSuchPath(f"no problem type is named {brief(slug)}; types: {', '.join(error_types())}")
    return f"{kind.title} (HTTP {kind.status})\n\n{cleandoc(kind.__doc__ or '')}\n"
