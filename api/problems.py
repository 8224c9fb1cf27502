"""One handler for our errors, and the framework's own errors in the same form."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.errors import (
    InvalidRequest,
    KernelscopeError,
    MethodNotAllowed,
    NoSuchPath,
    Problem,
)

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
PROBLEM_JSON = "application/problem+json"


def add_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.add_exception_handler(KernelscopeError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)


def respond(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as a response."""
    return JSONResponse(problem.model_dump(), problem.status, headers, media_type=PROBLEM_JSON)


def refusal(error: KernelscopeError) -> JSONResponse:
    """An error of ours as a response."""
    return respond(error.problem(), error.headers)


def invalid(errors: list[Any], known_fields: list[str] | None = None) -> InvalidRequest:
    """Pydantic's errors as one of ours: every field by name, with what would be right."""
    told = [{"field": _path(error["loc"]), "message": _message(error, known_fields)} for error in errors]
    detail = "; ".join(f"{error['field']}: {error['message']}" for error in told[:3])
    more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
    return InvalidRequest(detail + more, errors=told)


def _path(location: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in location if part not in ("body", "query", "path")) or "body"


def _message(error: Any, known_fields: list[str] | None) -> str:
    if error["type"] == "extra_forbidden" and known_fields:
        return f"no such field; fields: {', '.join(known_fields)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    plain = isinstance(given, str | int | float | bool) and len(str(given)) <= 60 and str(given) not in message
    return f"{message} (given: {given})" if plain else message


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, KernelscopeError)
    return refusal(error)


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    return respond(invalid(list(error.errors())).problem())


async def _framework(request: Request, error: Exception) -> JSONResponse:
    """The router's own 404 and 405; whatever else the framework refuses is `about:blank`, as RFC 9457 has it."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == HTTPStatus.NOT_FOUND:
        known: KernelscopeError = NoSuchPath(f"there is nothing at {request.url.path}; the routes are listed at /docs")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(_methods(request))
        known = MethodNotAllowed(f"{request.url.path} does not take {request.method}; it takes {headers['allow']}")
    else:
        title = HTTPStatus(error.status_code).phrase
        other = Problem(type="about:blank", title=title, status=error.status_code, detail=str(error.detail))
        return respond(other, headers)
    return respond(known.problem(), headers)


def _methods(request: Request) -> list[str]:
    """All that the path takes: the framework names those of the first route that fits."""
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


async def _unexpected(_: Request, __: Exception) -> JSONResponse:
    return respond(KernelscopeError("an internal error; the server's log has the details").problem())
