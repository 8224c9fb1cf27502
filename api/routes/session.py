"""`/session`: a cookie for the web page, because images, downloads and event streams cannot send headers."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from api.edge.access import SESSION_SECONDS, bearer, cookie_names, session_token
from api.openapi import refusals
from api.services import ServicesDep
from shared.errors import Unauthorized

router = APIRouter(tags=["session"])


@router.post("/session", status_code=204, responses=refusals())
async def begin_session(request: Request, response: Response, services: ServicesDep) -> None:
    """Set a cookie that stands for the API key in `Authorization` for 12 hours."""
    key = request.state.key
    if key is not None and bearer(request) is None:  # a session cannot prolong itself
        raise Unauthorized("send the API key itself: `Authorization: Bearer <key>`")
    if key is not None:
        token = await services.access.open_session(key)
        secure = "https" in (request.url.scheme, urlsplit(services.settings.public_url).scheme)
        name = cookie_names(request)[0 if secure else 1]
        response.set_cookie(name, token, SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)


@router.delete("/session", status_code=204, responses=refusals())
async def end_session(request: Request, response: Response, services: ServicesDep) -> None:
    """End the session and delete its cookie."""
    if token := session_token(request):
        await services.access.end_session(token)
    for name in cookie_names(request):
        response.delete_cookie(name, secure=name.startswith("__Host-"))
