"""Types, limits and validators of fields that several schemas share."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from shared.errors import brief

MAX_IMAGES = 16
MAX_KERNELS = 2048
MAX_VALUES = 64  # of α, of β, and of methods
MAX_NAME = 128  # characters of an image's name
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
CONTROL = r"\x00-\x1f\x7f-\x9f"  # control characters, not allowed in names


def number(value: object) -> object:
    """A number. Text, as in forms and queries, is parsed as JSON would parse it.

    Raises:
        ValueError: the text is not a number, or the value is `true` or `false`.
    """
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value.strip())):
        raise ValueError(f"{brief(value)!r} is not a finite number; write it as 12, -0.5 or 1e-3")
    return json.loads(value) if isinstance(value, str) else value


def _kernels(value: object) -> object:
    usage = 'give zero-based kernel indices such as [12, 40], or "top:N" for the N most active kernels'
    if isinstance(value, str):
        match = re.fullmatch(r"top:([1-9][0-9]{0,3})", value)
        if not match or int(match[1]) > MAX_KERNELS:
            raise ValueError(f"{brief(value)!r} names no kernels; {usage}")
        return value
    indices = value if isinstance(value, list) else [value]
    if not indices or len(indices) > MAX_KERNELS:
        raise ValueError(f"{len(indices)} kernels; 1 to {MAX_KERNELS} are accepted; {usage}")
    if any(isinstance(index, str) and index.startswith("top:") for index in indices):
        raise ValueError(f'"top:N" must stand alone; {usage}')
    if wrong := [index for index in indices if type(index) is not int or index < 0]:
        raise ValueError(f"{brief(repr(wrong[0]))} names no kernel; {usage}")
    return list(dict.fromkeys(indices))


def _at_most(most: int) -> Callable[[object], object]:
    """A validator that turns a single value into a list, and checks the length before the values are validated."""

    def counted(value: object) -> object:
        values = value if isinstance(value, list) else [value]
        if len(values) > most:
            raise ValueError(f"{len(values)} values; at most {most} are accepted")
        return values

    return counted


def few_images(value: object) -> object:
    """Checks the number of images before any of them is validated."""
    if isinstance(value, list) and len(value) > MAX_IMAGES:
        raise ValueError(f"{len(value)} images; at most {MAX_IMAGES} are accepted")
    return value


def without_repeats(values: list[Any]) -> list[Any]:
    """The distinct values, in their order."""
    return list(dict.fromkeys(values))


def _base64(value: object) -> object:
    if not isinstance(value, str | memoryview):
        raise ValueError("give the file's bytes as a base64 string")  # noqa: TRY004 - pydantic turns it into a 422
    try:
        return b64decode("".join(value.split()) if isinstance(value, str) else value, validate=True)
    except ValueError:
        raise ValueError("this is not base64; give the file's bytes as a base64 string") from None


Base64 = Annotated[bytes, BeforeValidator(_base64, json_schema_input_type=str)]
ImageName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=rf"^[^{CONTROL}]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(max_length=64)]  # of a network or a layer
Kernels = Annotated[list[int] | str, BeforeValidator(_kernels)]
StoredKernels = Annotated[list[int] | str, BeforeValidator(lambda value: value if value == [] else _kernels(value))]
LossWeights = Annotated[
    list[Annotated[FiniteFloat, Field(ge=0), BeforeValidator(number)]],
    BeforeValidator(_at_most(MAX_VALUES)),
    AfterValidator(without_repeats),
    Field(min_length=1, max_length=MAX_VALUES),
]
Method = Literal["suppression", "evidence", "guided_backprop", "deconvnet", "lrp"]
Methods = Annotated[
    list[Method],
    BeforeValidator(_at_most(MAX_VALUES)),
    AfterValidator(without_repeats),
    Field(min_length=1, max_length=MAX_VALUES),
]
Deadline = Annotated[
    float | None,
    Field(
        gt=0,
        le=30 * 86400,
        description="seconds from now; after that, running optimisations return their X̂ as it is, and items that have "
        "not started fail",
    ),
]
WebhookUrl = Annotated[
    str | None,
    Field(
        max_length=2048,
        pattern=r"^https?://[^\s]+$",
        description="public URL that is called once the job has ended, see docs/webhooks.md",
    ),
]
