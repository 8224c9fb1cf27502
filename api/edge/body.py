"""Reading a request's body within the server's capacity, as JSON or as a multipart form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.edge import form_body, json_body
from api.edge.capacity import Capacity, caller_key
from api.edge.multipart import FormReader
from shared.errors import (
    BodyTooLarge,
    MalformedBody,
    RequestTimeout,
    ServerBusy,
    UnsupportedContentType,
    brief,
)
from shared.schemas import ActivationsBody, ActivationsOptions, ExplainBody, ExplainOptions

SMALL_BYTES = 64 * 1024  # a smaller body needs no reserved memory
BODY_ERRORS = (MalformedBody, UnsupportedContentType, BodyTooLarge, RequestTimeout, ServerBusy)
JSON, FORM = "application/json", "multipart/form-data"

OptionsT = TypeVar("OptionsT", bound=BaseModel)
BodyT = TypeVar("BodyT", ExplainBody, ActivationsBody)
ObjectT = TypeVar("ObjectT", bound=BaseModel)


@dataclass(frozen=True)
class BodyModels(Generic[OptionsT, BodyT]):
    """The models of a body with images: `options` has all of its fields but the images."""

    options: type[OptionsT]
    body: type[BodyT]


EXPLAIN = BodyModels(ExplainOptions, ExplainBody)
ACTIVATIONS = BodyModels(ActivationsOptions, ActivationsBody)


@asynccontextmanager
async def read_body(request: Request, models: BodyModels[OptionsT, BodyT], capacity: Capacity) -> AsyncIterator[BodyT]:
    """A body with images, JSON or a multipart form; its memory stays reserved within the context.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    media_type = _media_type(request, JSON, FORM)
    async with AsyncExitStack() as reserved:
        if media_type == JSON:
            data = bytearray()
            await _stream(request, data.extend, capacity, reserved)
            yield await run_in_threadpool(json_body.with_images, data, models.body)
        else:
            form = FormReader(request.headers["content-type"])
            await _stream(request, form.write, capacity, reserved)
            yield await run_in_threadpool(form_body.with_images, form.close(), models.options, models.body)


async def read_object(request: Request, model: type[ObjectT], capacity: Capacity) -> ObjectT:
    """A body without images, a JSON object.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    _media_type(request, JSON)
    data = bytearray()
    async with AsyncExitStack() as reserved:
        await _stream(request, data.extend, capacity, reserved)
        return await run_in_threadpool(lambda: json_body.validated(json_body.parse(data), model))


@asynccontextmanager
async def read_files(request: Request, capacity: Capacity) -> AsyncIterator[list[tuple[str, bytes]]]:
    """The files of a multipart form, in its order: (name, bytes). Their memory stays reserved within the context.

    Raises:
        UnsupportedContentType, MalformedBody, InvalidRequest, BodyTooLarge, ServerBusy.
    """
    _media_type(request, FORM)
    form = FormReader(request.headers["content-type"])
    async with AsyncExitStack() as reserved:
        await _stream(request, form.write, capacity, reserved)
        yield await run_in_threadpool(form_body.files, form.close())


def _media_type(request: Request, *accepted: str) -> str:
    """The media type of the body.

    Raises:
        UnsupportedContentType: it is none of these, or the body as a whole is compressed.
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in ("", "identity"):
        raise UnsupportedContentType(
            f"Content-Encoding is {brief(coding)}; send the body uncompressed: images are compressed already",
            headers={"Accept-Encoding": "identity"},
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in accepted:
        raise UnsupportedContentType(f"Content-Type is {brief(media_type) or 'missing'}; send {' or '.join(accepted)}")
    return media_type


async def _stream(
    request: Request, write: Callable[[bytes], None], capacity: Capacity, reserved: AsyncExitStack
) -> None:
    """Read the body piece by piece; memory for one that is not small is reserved once it has begun to arrive."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else capacity.body_bytes
    received = 0
    async for piece in request.stream():
        if received <= SMALL_BYTES < received + len(piece):
            await reserved.enter_async_context(capacity.bodies.reserve(caller_key(request), size))
        received += len(piece)
        write(piece)
