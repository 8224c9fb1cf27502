"""`GET /`: the web page and its files."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from shared.errors import NoSuchPath

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/web/{name}")
def asset(name: str) -> Response:
    """A file of the page."""
    return _file(name)


def _file(name: str) -> Response:
    folder = files("api") / "web"
    if name not in {entry.name for entry in folder.iterdir()}:
        raise NoSuchPath(f"the page has no file {name}")
    media_type = MEDIA_TYPES.get(name.rsplit(".", 1)[-1], "application/octet-stream")
    return Response((folder / name).read_bytes(), media_type=media_type, headers=HEADERS)
