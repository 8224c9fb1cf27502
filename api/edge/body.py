"""Reading a request's body: bounded while it streams, JSON or multipart, parsed off the event loop."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.edge.admission import Admission, caller_of
from api.edge.form import FILE_WANTED, IMAGE, Part, Parts
from api.edge.json_body import parsed
from api.edge.problems import invalid
from shared.errors import (
    BodyTooLarge,
    InvalidRequest,
    RequestTimeout,
    UnsupportedContentType,
    UnsupportedImage,
    brief,
)
from shared.images import form_of
from shared.schemas import (
    CONTROL,
    MAX_IMAGES,
    MAX_NAME,
    ActivationsBody,
    ActivationsOptions,
    ExplainBody,
    ExplainOptions,
    ImageSource,
    number,
)

LISTS = ("kernels", "methods", "alpha", "beta")
SMALL_BYTES = 64 * 1024  # of a body that waits for no room
PAUSE_SECONDS = 15.0  # that a body may take between two of its pieces
BODY_SECONDS = 120.0  # and as a whole
REFUSED = (408, 413, 503)
DRAIN_SECONDS, DRAINED_BYTES = 2.0, 64 * 10**6


OptionsT = TypeVar("OptionsT", bound=BaseModel)
BodyT = TypeVar("BodyT", ExplainBody, ActivationsBody)
ObjectT = TypeVar("ObjectT", bound=BaseModel)


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


@asynccontextmanager
async def received(request: Request, form: Form[OptionsT, BodyT], admission: Admission) -> AsyncIterator[BodyT]:
    """A request's body, JSON or a multipart form, for as long as there is room for it in memory.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    media_type = _media_type(request)
    async with AsyncExitStack() as room:
        if media_type == "application/json":
            data = bytearray()
            await _stream(request, data.extend, admission, room)
            yield await run_in_threadpool(_from_json, data, form)
        elif media_type == "multipart/form-data":
            parts = Parts(request.headers["content-type"])
            await _stream(request, parts.write, admission, room)
            yield await run_in_threadpool(_from_form, parts.close(), form)
        else:
            raise UnsupportedContentType(
                f"Content-Type is {brief(media_type) or 'missing'}; send application/json or multipart/form-data"
            )


async def received_object(request: Request, model: type[ObjectT], admission: Admission) -> ObjectT:
    """A request's body, a JSON object without images.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    media_type = _media_type(request)
    if media_type != "application/json":
        raise UnsupportedContentType(f"Content-Type is {brief(media_type) or 'missing'}; send application/json")
    data = bytearray()
    async with AsyncExitStack() as room:
        await _stream(request, data.extend, admission, room)
        return await run_in_threadpool(lambda: _object(parsed(data), model))


@asynccontextmanager
async def received_files(request: Request, admission: Admission) -> AsyncIterator[list[tuple[str, bytes]]]:
    """The files of a multipart form by name, in its order.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    media_type = _media_type(request)
    if media_type != "multipart/form-data":
        raise UnsupportedContentType(f"Content-Type is {brief(media_type) or 'missing'}; send multipart/form-data")
    parts = Parts(request.headers["content-type"])
    async with AsyncExitStack() as room:
        await _stream(request, parts.write, admission, room)
        yield await run_in_threadpool(_files_of, parts.close())


def _files_of(parts: list[Part]) -> list[tuple[str, bytes]]:
    files = []
    for part in parts:
        if _name(part.name) != IMAGE or part.filename is None:
            raise InvalidRequest(f"field {brief(part.name)!r} is not known; {FILE_WANTED}")
        if part.data or part.filename:
            files.append((part.filename, bytes(part.data)))
            part.data.clear()
    if not files:
        raise InvalidRequest("image: the form has no file; send one or more as 'image' (curl -F image=@cat.jpg)")
    return files


def _media_type(request: Request) -> str:
    """Of a body that comes as it is.

    Raises:
        UnsupportedContentType: it is compressed as a whole.
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in ("", "identity"):
        raise UnsupportedContentType(
            f"Content-Encoding is {brief(coding)}; send the body as it is: images are compressed already",
            headers={"Accept-Encoding": "identity"},
        )
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _stream(request: Request, take: Callable[[bytes], None], admission: Admission, room: AsyncExitStack) -> None:
    """All of the body, piece by piece; one that is not small waits for room as soon as it has begun to come."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else admission.body_bytes
    seen = 0
    async for piece in request.stream():
        if seen <= SMALL_BYTES < seen + len(piece):
            await room.enter_async_context(admission.bodies.taken(caller_of(request), size))
        seen += len(piece)
        take(piece)


def _from_json(body: bytearray, form: Form[OptionsT, BodyT]) -> BodyT:
    return _validated(parsed(body), form.body)


def _from_form(parts: list[Part], form: Form[OptionsT, BodyT]) -> BodyT:
    images: list[ImageSource] = []
    texts: dict[str, list[str]] = {}
    for part in parts:
        name = _name(part.name)
        if name == IMAGE:
            images += _file(part)
        elif part.filename is not None:
            raise InvalidRequest(f"file field {brief(name)!r} is not known; send files as 'image'")
        else:
            texts.setdefault(name, []).append(part.text)
    options = _options(texts, form.options)
    if not images:
        raise InvalidRequest("image: the form has no file; send one or more as 'image' (curl -F image=@cat.jpg)")
    if len(images) > MAX_IMAGES:
        raise InvalidRequest(f"image: {len(images)} files; at most {MAX_IMAGES} are taken")
    return form.body.model_construct(**dict(options), images=images)


def _file_name(given: str) -> str | None:
    """Without its folders, and no longer than a name may be."""
    return re.sub(rf"^.*[/\\]|[{CONTROL}]", "", given, flags=re.DOTALL)[:MAX_NAME] or None


def _file(part: Part) -> list[ImageSource]:
    """The file; none where a page's form was sent with no file chosen."""
    data = bytes(part.data)
    part.data.clear()
    if not data and not part.filename:
        return []
    if part.filename is None:
        try:
            form_of(data)
        except UnsupportedImage:
            raise InvalidRequest(f"image: this part has no filename and is no image; {FILE_WANTED}") from None
    return [ImageSource.model_construct(data=data, sha256=None, name=_file_name(part.filename or ""))]


def _name(given: str) -> str:
    """A part's field: some programs call each value of a list `kernels[]`."""
    name = given.removesuffix("[]")
    return name if name in (IMAGE, *LISTS) else given


def _value(name: str, texts: list[str]) -> object:
    """A form's field as JSON would have it: `kernels=3,16` is a list, and so are `kernels=3` and `kernels=16`."""
    if name not in LISTS or (len(texts) == 1 and name == "kernels" and texts[0].startswith("top:")):
        return texts[0]
    return [_number(part) for text in texts for part in text.split(",")]


def _number(text: str) -> object:
    """As JSON would have it: 12 is an index, and 1_2 is no number."""
    try:
        return number(text)
    except ValueError:
        return text.strip()


def _object(fields: object, model: type[ObjectT]) -> ObjectT:
    if not isinstance(fields, dict):
        wanted = ", ".join(f'"{name}": …' for name, one in model.model_fields.items() if one.is_required())
        raise InvalidRequest(f"the body is JSON but not an object; send {{{wanted}}}")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), list(model.model_fields)) from None


def _validated(fields: object, model: type[BodyT]) -> BodyT:
    body = _object(fields, model)
    for index, image in enumerate(body.images):
        if (image.data is None) == (image.sha256 is None):
            raise InvalidRequest(f"images.{index}: give either data (base64) or sha256")
    return body


def _options(texts: Mapping[str, list[str]], model: type[OptionsT]) -> OptionsT:
    """What a form's fields say.

    Raises:
        InvalidRequest: also where a field that has one value is there more than once.
    """
    texts = {
        name: _given(values) or values
        for name, values in texts.items()
        if _given(values) or name not in model.model_fields
    }
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


def _given(values: list[str]) -> list[str]:
    """Without those that are empty: a page's form sends what nobody has filled in."""
    return [value for value in values if value.strip()]
