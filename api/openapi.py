"""The OpenAPI document: helpers with which routes describe their errors, examples and bodies; and the common parts.

`make openapi` writes the document to `openapi.json`; a test compares that file with the code.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from shared import errors
from shared.errors import KernelscopeError, Problem

Responses = dict[int | str, dict[str, Any]]  # what FastAPI takes as a route's `responses`

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}  # a file in a response, and one in a form
UPLOAD: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
PUBLIC: dict[str, Any] = {"security": []}  # `openapi_extra` of a route that needs no key

COMMON_ERRORS = (
    errors.Unauthorized,
    errors.CrossOrigin,
    errors.RateLimited,
    errors.InvalidRequest,
    errors.StoreUnavailable,
    KernelscopeError,
)

_models: dict[str, type[BaseModel]] = {}  # those that only a description refers to, by name


def refusals(*kinds: type[KernelscopeError], public: bool = False) -> Responses:
    """A route's error responses: one for each status, with an example of each problem.

    Args:
        kinds: the errors of this route, besides those that every route has.
        public: the route needs no key, so most of those do not occur.
    """
    responses: Responses = {}
    for kind in (*kinds, *((errors.InvalidRequest,) if public else COMMON_ERRORS)):
        detail = " ".join((kind.__doc__ or "").split())
        response = responses.setdefault(kind.status, {"description": kind.title, "content": {}})
        if kind.title not in response["description"]:
            response["description"] += f"; {kind.title.lower()}"
        content = response["content"].setdefault(
            "application/problem+json", {"schema": _reference(Problem), "examples": {}}
        )
        content["examples"][kind.slug()] = {"summary": kind.title, "value": kind(detail).problem().model_dump()}
        if kind.status in (429, 503):
            response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return responses


def example(status: int, value: Any, **more: Any) -> Responses:
    """An example of a JSON response.

    Args:
        more: other fields of its description: `description`, `model`.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return {status: {**more, "content": {"application/json": {"example": plain}}}}


def file(media_type: str, description: str, schema: dict[str, Any] = BINARY) -> Responses:
    """A response that is a file."""
    return {200: {"content": {media_type: {"schema": schema}}, "description": description}}


def body(**content: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route with a body, by the media type's last word: `json`, `form`."""
    media_types = {"json": "application/json", "form": "multipart/form-data"}
    return {"requestBody": {"required": True, "content": {media_types[name]: one for name, one in content.items()}}}


def json_content(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """A JSON body of this model."""
    return {"schema": _reference(model), "example": example}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    _models[model.__name__] = model
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def describe(app: FastAPI) -> None:
    """Make the application return this document at `/openapi.json`."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    schemas = found["components"]["schemas"]
    for name, model in _models.items():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[name] = schema
    schemas.update(_image_source(schemas["ImageSource"]["properties"]))
    _restore_examples(found["paths"], app)
    found["components"] = {"schemas": dict(sorted(schemas.items())), "securitySchemes": SECURITY}
    found["security"] = [{"key": []}, {"session": []}, {}]
    return found


SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": "an API key; `kernelscope keys add NAME` makes one"},
    "session": {"type": "apiKey", "in": "cookie", "name": "__Host-kernelscope"}
    | {"description": "see `POST /session`; over plain HTTP `kernelscope-PORT`"},
}


def _restore_examples(paths: dict[str, Any], app: FastAPI) -> None:
    """Put the routes' own examples into the document: FastAPI leaves out their fields that are null."""
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or ()) if getattr(route, "include_in_schema", False) else ():
            responses = paths[str(route.path_format)][method.lower()]["responses"]
            for status, response in route.responses.items():
                for media_type, content in response.get("content", {}).items():
                    responses[str(status)]["content"][media_type] |= content


def _image_source(properties: dict[str, Any]) -> dict[str, Any]:
    """An image is given either by its bytes or by its digest: one schema for each."""
    made: dict[str, Any] = {}
    members = {}
    for name, member in properties.items():
        (given,) = (option for option in member["anyOf"] if option["type"] != "null")
        members[name] = {**given, "description": member["description"]}
    for title, name in {"ImageBytes": "data", "ImageDigest": "sha256"}.items():
        made[title] = {
            "type": "object",
            "title": title,
            "required": [name],
            "properties": {name: members[name], "name": members["name"]},
            "additionalProperties": False,
        }
    made["ImageSource"] = {"oneOf": [{"$ref": f"#/components/schemas/{title}"} for title in made]}
    return made
