"""What both clients send, and when they send it again."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
import numpy as np
from PIL import Image
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_before_delay

from kernelscope.client.errors import InvalidAddress, ServerError, ServerUnreachable
from kernelscope.client.pictures import Picture, file_of

P = ParamSpec("P")
T = TypeVar("T")
RetryingT = TypeVar("RetryingT", AsyncRetrying, Retrying)

TRANSIENT = (429, 502, 503, 504)  # statuses after which a request is sent again
RESTART_SECONDS = 60.0  # for which a server may be unavailable while a job is waited for
LONGEST_PAUSE = 5.0  # between two attempts, unless the server asks for a longer one
# Requests to this machine do not use a proxy, even if HTTP_PROXY is set.
DIRECT: dict[str, None] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))

File = tuple[str, tuple[str, bytes]]  # field, (file name, content)


def retrying(kind: type[RetryingT], seconds: float) -> RetryingT:
    """Calls a function again while the server is unavailable or overloaded.

    Args:
        seconds: after which no further attempt starts; 0: one attempt.
    """
    return kind(
        retry=retry_if_exception(_transient), wait=_pause, stop=stop_before_delay(max(seconds, 0.0)), reraise=True
    )


def _transient(error: BaseException) -> bool:
    if isinstance(error, ServerError):
        return error.status in TRANSIENT and not error.too_large
    return isinstance(error, ServerUnreachable)


def _pause(state: RetryCallState) -> float:
    """Exponential backoff from 0.2 s with jitter, so that many clients do not retry together; at least Retry-After."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.retry_after if isinstance(error, ServerError) else None
    backoff = min(LONGEST_PAUSE, 0.2 * 2.0 ** (state.attempt_number - 1))
    return max(backoff * random.uniform(0.5, 1.0), retry_after or 0.0)  # noqa: S311 - not a secret


def address(url: str | None) -> str:
    """The server's URL: the argument, KERNELSCOPE_URL, or port 8000 of this machine.

    Raises:
        InvalidAddress.
    """
    url = (url or os.environ.get("KERNELSCOPE_URL") or "http://127.0.0.1:8000").rstrip("/")
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidAddress(url, error) from error
    return url


def headers(key: str | None) -> dict[str, str]:
    """The header with the API key: the argument, or KERNELSCOPE_API_KEY."""
    key = key or os.environ.get("KERNELSCOPE_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def idempotent(key: str | None) -> dict[str, str]:
    """The header by which a request creates one job, however often it is sent."""
    return {"Idempotency-Key": key or uuid4().hex}


def form(images: Picture | Sequence[Picture], fields: Mapping[str, Any]) -> tuple[list[File], dict[str, str]]:
    """The parts of a multipart form: files, and the text fields. Fields that are None are left out.

    Raises:
        ValueError: α or β is a text such as `0,5`, which may be one number; the server would read two.
    """
    for name in ("alpha", "beta"):
        _refuse_decimal_comma(name, fields.get(name))
    several = [images] if isinstance(images, str | bytes | Path | Image.Image | np.ndarray) else images
    files = [("image", file_of(image)) for image in several]
    return files, {name: _text(value) for name, value in fields.items() if value is not None}


def _refuse_decimal_comma(name: str, given: Any) -> None:
    """Raises ValueError where a text may be one number or two. `0.5,2` and `1, 2, 3` can only be lists."""
    for text in given if isinstance(given, list | tuple) else [given]:
        if isinstance(text, str) and re.fullmatch("[0-9]+,[0-9]+", text.strip()):
            several = text.replace(",", ", ")
            two = f"{several} as two values" if text is not given else f"a list: [{several}]"
            raise ValueError(f"{name}: {text!r} may be one number or two; write {text.replace(',', '.')}, or {two}")


def _text(value: Any) -> str:
    """A value as a form field; the values of a list, a range or an array are separated by commas."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def quoted(name: str | int) -> str:
    """A name as one segment of a URL path."""
    return quote(str(name), safe="")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that blocks, in a thread."""
    return await asyncio.to_thread(function, *args, **kwargs)


def directly(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for the synchronous client: call it."""
    return function(*args, **kwargs)
