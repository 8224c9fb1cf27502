"""Reading a request's body: bounded while it streams, JSON or multipart, parsed off the event loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import invalid
from shared.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedContentType
from shared.schemas import MAX_IMAGES, ExplainBody, ExplainOptions, ImageSource

LISTS = ("methods", "alpha", "beta")
FIELD_BYTES = 64 * 1024


class BodyLimit:
    """ASGI middleware: a body over the limit is refused while it streams, before it is read whole."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application receives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            self._check(int(announced) if announced.isdigit() else 0)
            message = await receive()
            seen += len(message.get("body", b""))
            self._check(seen)
            return message

        await self.app(scope, counted, send)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise BodyTooLarge(f"the body is over {self.limit / 1e6:g} MB, the most that this server takes")


async def read_explain(request: Request) -> ExplainBody:
    """The body of `POST /explain` in either form.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await run_in_threadpool(_from_json, await request.body())
    if media_type == "multipart/form-data":
        return await _from_form(request)
    raise UnsupportedContentType(
        f"Content-Type is {media_type or 'missing'}; send application/json or multipart/form-data"
    )


def _from_json(body: bytes) -> ExplainBody:
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedBody("the body is JSON that is nested too deeply") from None
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
    return _validated(fields)


def _no_constant(name: str) -> float:
    raise InvalidRequest(f"{name} is not a number that can be used; give a finite number")


async def _from_form(request: Request) -> ExplainBody:
    try:
        async with request.form(max_files=MAX_IMAGES, max_fields=64, max_part_size=FIELD_BYTES) as form:
            images, fields = [], {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise InvalidRequest(f"file field {name!r} is not known; send files as 'image'")
                    images.append(await value.read())
                else:
                    fields[name] = _value(name, value)
    except HTTPException as error:
        raise MalformedBody(f"the form cannot be read: {error.detail}") from None
    options = await run_in_threadpool(_validated_options, fields)
    if not images:
        raise InvalidRequest("image: the form has no file; send one or more as 'image' (curl -F image=@cat.jpg)")
    sources = [ImageSource.model_construct(data=data, sha256=None) for data in images]
    return ExplainBody.model_construct(**dict(options), images=sources)


def _value(name: str, text: str) -> object:
    """A form field as JSON would have it: `kernels=3,16` is a list, `alpha=0.5` a number."""
    if name == "kernels" and not text.startswith("top:"):
        return [_number(part) for part in text.split(",")]
    if name in LISTS:
        return [_number(part) for part in text.split(",")]
    return text


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def _validated(fields: object) -> ExplainBody:
    if not isinstance(fields, dict):
        raise InvalidRequest('the body is JSON but not an object; send {"images": […], "layer": …, "kernels": …}')
    try:
        body = ExplainBody.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), list(ExplainBody.model_fields)) from None
    for number, image in enumerate(body.images):
        if (image.data is None) == (image.sha256 is None):
            raise InvalidRequest(f"images.{number}: give either data (base64) or sha256")
    return body


def _validated_options(fields: Mapping[str, Any]) -> ExplainOptions:
    try:
        return ExplainOptions.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), ["image", *ExplainOptions.model_fields]) from None
