"""Reading a request's body: bounded while it streams, JSON or multipart, parsed off the event loop."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import invalid
from shared.errors import BodyTooLarge, InvalidRequest, MalformedBody, RequestTimeout, UnsupportedContentType
from shared.schemas import (
    MAX_IMAGES,
    MAX_KERNELS,
    ActivationsBody,
    ActivationsOptions,
    ExplainBody,
    ExplainOptions,
    ImageSource,
)

LISTS = ("kernels", "methods", "alpha", "beta")
FIELD_BYTES = 64 * 1024
MOST_FIELDS = MAX_KERNELS + 256  # each kernel may have a field of its own
PAUSE_SECONDS = 15.0  # that a body may take between two of its pieces
BODY_SECONDS = 120.0  # and as a whole
FILE_WANTED = "send each image as a file with a name (curl -F image=@cat.jpg)"
REFUSED = (408, 413)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
DRAIN_SECONDS, DRAINED_BYTES = 2.0, 64 * 10**6


OptionsT = TypeVar("OptionsT", bound=BaseModel)
BodyT = TypeVar("BodyT", ExplainBody, ActivationsBody)


@dataclass(frozen=True)
class Form(Generic[OptionsT, BodyT]):
    """The two forms of a body: everything but the images, and everything."""

    options: type[OptionsT]
    body: type[BodyT]


EXPLAIN = Form(ExplainOptions, ExplainBody)
ACTIVATIONS = Form(ActivationsOptions, ActivationsBody)


class BodyLimit:
    """ASGI middleware: a body over the limit is refused while it streams, before it is read whole; so is a slow one."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application receives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        seen, whole, refused = 0, False, False
        until = time.monotonic() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal seen, whole
            if whole:  # what comes now is that the caller has gone
                return await receive()
            self._check(int(announced) if announced.isdigit() else 0)
            try:
                async with asyncio.timeout(min(until - time.monotonic(), PAUSE_SECONDS)):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(
                    f"the body came too slowly; it may pause for {PAUSE_SECONDS:g} s and take {BODY_SECONDS:g} s"
                ) from None
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            self._check(seen)
            return message

        async def told(message: Message) -> None:
            """A caller who is refused in mid-body may read why before the connection is closed."""
            nonlocal refused
            if message["type"] == "http.response.start" and not whole and message["status"] in REFUSED:
                refused = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if refused and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, counted, told)

    @staticmethod
    async def _drain(receive: Receive) -> None:
        """What the caller was still sending, for a moment: a connection that is closed on them loses our answer."""
        left = DRAINED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise BodyTooLarge(f"the body is over {self.limit / 1e6:g} MB, the most that this server takes")


async def read(request: Request, form: Form[OptionsT, BodyT]) -> BodyT:
    """A request's body, as JSON or as a multipart form.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await run_in_threadpool(_from_json, await request.body(), form)
    if media_type == "multipart/form-data":
        return await _from_form(request, form)
    raise UnsupportedContentType(
        f"Content-Type is {media_type or 'missing'}; send application/json or multipart/form-data"
    )


def _from_json(body: bytes, form: Form[OptionsT, BodyT]) -> BodyT:
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedBody("the body is JSON that is nested too deeply") from None
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
    if SURROGATE.search(body):
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise MalformedBody("the body has half of a surrogate pair, which is no character") from None
    return _validated(fields, form.body)


def _no_constant(name: str) -> float:
    raise InvalidRequest(f"{name} is not a number that can be used; give a finite number")


async def _from_form(request: Request, form: Form[OptionsT, BodyT]) -> BodyT:
    try:
        async with request.form(max_files=MAX_IMAGES, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES) as parts:
            images: list[bytes] = []
            texts: dict[str, list[str]] = {}
            for given, value in parts.multi_items():
                name = _name(given)
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise InvalidRequest(f"file field {name!r} is not known; send files as 'image'")
                    images.append(await value.read())
                elif name == "image":
                    raise InvalidRequest(f"image: this part has no filename, so it is no file; {FILE_WANTED}")
                else:
                    texts.setdefault(name, []).append(value)
    except HTTPException as error:
        more = f"; {FILE_WANTED}" if error.detail.startswith("Part exceeded") else ""
        raise MalformedBody(f"the form cannot be read: {error.detail.rstrip('.')}{more}") from None
    options = await run_in_threadpool(_options, texts, form.options)
    if not images:
        raise InvalidRequest("image: the form has no file; send one or more as 'image' (curl -F image=@cat.jpg)")
    sources = [ImageSource.model_construct(data=data, sha256=None) for data in images]
    return form.body.model_construct(**dict(options), images=sources)


def _name(given: str) -> str:
    """A part's field: some programs call each value of a list `kernels[]`."""
    name = given.removesuffix("[]")
    return name if name in ("image", *LISTS) else given


def _value(name: str, texts: list[str]) -> object:
    """A form's field as JSON would have it: `kernels=3,16` is a list, and so are `kernels=3` and `kernels=16`."""
    if name not in LISTS or (len(texts) == 1 and name == "kernels" and texts[0].startswith("top:")):
        return texts[0]
    return [_number(part) for text in texts for part in text.split(",")]


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def _validated(fields: object, model: type[BodyT]) -> BodyT:
    if not isinstance(fields, dict):
        raise InvalidRequest('the body is JSON but not an object; send {"images": […], "layer": …}')
    try:
        body = model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), list(model.model_fields)) from None
    for number, image in enumerate(body.images):
        if (image.data is None) == (image.sha256 is None):
            raise InvalidRequest(f"images.{number}: give either data (base64) or sha256")
    return body


def _options(texts: Mapping[str, list[str]], model: type[OptionsT]) -> OptionsT:
    """What a form's fields say.

    Raises:
        InvalidRequest: also where a field that has one value is there more than once.
    """
    repeated = [
        {"type": "repeated", "loc": (name,), "msg": f"given {len(values)} times; give it once"}
        for name, values in texts.items()
        if len(values) > 1 and name not in LISTS and name in model.model_fields
    ]
    if repeated:
        raise invalid(repeated)
    try:
        return model.model_validate({name: _value(name, values) for name, values in texts.items()})
    except ValidationError as error:
        raise invalid(error.errors(), ["image", *model.model_fields]) from None
