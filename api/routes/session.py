"""`/session`: a cookie for the page, because pictures, downloads and event streams cannot send headers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.access import COOKIE, SESSION_SECONDS
from api.services import Opened
from shared.errors import Unauthorized

router = APIRouter(tags=["session"])


@router.post("/session", status_code=204)
async def begin_session(request: Request, response: Response, services: Opened) -> None:
    """With an API key in `Authorization`: sets a cookie that stands for the key for 12 hours."""
    key = request.state.key
    if key is not None and "authorization" not in request.headers:  # a session cannot prolong itself
        raise Unauthorized("send the API key itself: `Authorization: Bearer <key>`")
    if key is not None:
        token = await services.access.open_session(key)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)


@router.delete("/session", status_code=204)
async def end_session(request: Request, response: Response, services: Opened) -> None:
    """Forget the cookie."""
    if token := request.cookies.get(COOKIE):
        await services.access.end_session(token)
    response.delete_cookie(COOKIE)
