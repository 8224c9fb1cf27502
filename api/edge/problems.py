"""Error handlers: our own errors and the framework's, both returned as RFC 9457 problems."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from api.edge.methods import allowed
from shared.errors import (
    InvalidRequest,
    KernelscopeError,
    MethodNotAllowed,
    NoSuchPath,
    Problem,
    brief,
)

PROBLEM_JSON = "application/problem+json"
MOST_ERRORS = 20  # fields listed in one response
MOST_PATH = 200  # characters of a path


def add_handlers(app: FastAPI) -> None:
    """Have every error of the application returned as a problem."""
    app.add_exception_handler(KernelscopeError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)


class ProblemResponse(JSONResponse):
    """A problem as a response. Characters that cannot be encoded in UTF-8 become question marks."""

    media_type = PROBLEM_JSON

    def render(self, content: Any) -> bytes:
        """As JSON."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="replace")


def respond(problem: Problem, scope: Scope, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as a response; its `type` is a path under the request's root."""
    linked = problem.under(scope.get("root_path", ""))
    return ProblemResponse(linked.model_dump(), problem.status, headers)


def refusal(error: KernelscopeError, scope: Scope) -> JSONResponse:
    """One of our errors as a response."""
    return respond(error.problem(), scope, error.headers)


def invalid(errors: list[Any], known_fields: list[str] | None = None) -> InvalidRequest:
    """Pydantic's errors as one of ours: the first 20 fields by name, each with what is expected."""
    listed = [
        {"field": _path(error["loc"]), "message": _message(error, known_fields)} for error in errors[:MOST_ERRORS]
    ]
    detail = "; ".join(f"{error['field']}: {error['message']}" for error in listed[:3])
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return InvalidRequest(detail + more, errors=listed)


def _path(location: tuple[str | int, ...]) -> str:
    parts = [brief(part) for part in location if part not in ("body", "query", "path")]
    return brief(".".join(parts), 200) or "body"


def _message(error: Any, known_fields: list[str] | None) -> str:
    if error["type"] == "extra_forbidden":
        own = known_fields and len(error["loc"]) == 1
        return f"no such field; fields: {', '.join(known_fields or [])}" if own else "no such field"
    message = brief(str(error["msg"]).removeprefix("Value error, "), 300)
    given = error.get("input")
    plain = isinstance(given, str | int | float | bool) and len(str(given)) <= 60 and str(given) not in message
    return f"{message} (given: {given})" if plain else message


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, KernelscopeError)
    return refusal(error, request.scope)


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    return refusal(invalid(list(error.errors())), request.scope)


async def _framework(request: Request, error: Exception) -> JSONResponse:
    """The router's 404 and 405; any other error of the framework is of type `about:blank` (RFC 9457)."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == HTTPStatus.NOT_FOUND:
        known: KernelscopeError = NoSuchPath(
            f"there is nothing at {brief(request.url.path, MOST_PATH)}; the routes are listed at /docs"
        )
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(allowed(request.scope))
        known = MethodNotAllowed(
            f"{brief(request.url.path, MOST_PATH)} does not allow {request.method}; it allows {headers['allow']}"
        )
    else:
        title = HTTPStatus(error.status_code).phrase
        other = Problem(type="about:blank", title=title, status=error.status_code, detail=str(error.detail))
        return respond(other, request.scope, headers)
    return respond(known.problem(), request.scope, headers)


async def _unexpected(request: Request, _: Exception) -> JSONResponse:
    return refusal(KernelscopeError("an internal error; the server's log has the details"), request.scope)
