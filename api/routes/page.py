"""`GET /`: the web page with its files and sample images. `GET /docs`: the API's reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files
from io import BytesIO

from fastapi import APIRouter
from fastapi.responses import Response
from PIL import Image

from api.routes.caching import IfNoneMatch, etag_matches
from shared.drawings import all_colours, scene
from shared.errors import NoSuchPath, brief

router = APIRouter(include_in_schema=False)

MEDIA_TYPES = {
    "html": "text/html",
    "txt": "text/plain",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
    "jpg": "image/jpeg",
    "png": "image/png",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # the browser revalidates each time
}
SAMPLE_SIDE = 224
SAMPLES: dict[str, Callable[[], Image.Image]] = {
    "colours.png": lambda: all_colours(SAMPLE_SIDE),
    "shapes.png": lambda: scene(4, SAMPLE_SIDE).image,
}


@router.get("/")
def index(if_none_match: IfNoneMatch = "") -> Response:
    """The page."""
    return _file("index.html", if_none_match)


@router.get("/docs")
def docs(if_none_match: IfNoneMatch = "") -> Response:
    """The reference of the HTTP API (Swagger UI)."""
    return _file("docs.html", if_none_match)


@router.get("/llms.txt")
def llms_txt(if_none_match: IfNoneMatch = "") -> Response:
    """Instructions for language models that use the service."""
    return _file("llms.txt", if_none_match)


def web_page(name: str, if_none_match: str) -> Response:
    """A page at a URL that returns JSON to programs."""
    found = _file(name, if_none_match)
    found.headers["Vary"] = "Accept"
    return found


@router.get("/web/{name}")
def asset(name: str, if_none_match: IfNoneMatch = "") -> Response:
    """A file of the page."""
    return _file(name, if_none_match)


def _file(name: str, if_none_match: str) -> Response:
    data = _contents().get(name) or (_sample(name) if name in SAMPLES else None)
    if data is None:
        raise NoSuchPath(f"the page has no file {brief(name)}")
    headers = {**HEADERS, "ETag": f'"{sha256(data).hexdigest()[:32]}"'}
    if etag_matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=MEDIA_TYPES[name.rsplit(".", 1)[-1]], headers=headers)


@cache
def _contents() -> dict[str, bytes]:
    """The page's files by name."""
    web, reference = files("api") / "web", files("fastapi_offline") / "static"
    found = [entry for folder in (web, web / "vendor") for entry in folder.iterdir()]
    found += [reference / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")]
    return {entry.name: entry.read_bytes() for entry in found if entry.name.rsplit(".", 1)[-1] in MEDIA_TYPES}


@cache
def _sample(name: str) -> bytes:
    file = BytesIO()
    SAMPLES[name]().save(file, "PNG", optimize=True)
    return file.getvalue()
