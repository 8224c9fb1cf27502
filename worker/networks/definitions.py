"""Networks registered by the operator: `networks.toml` in the weights folder names architectures with weights.

[birds]
arch = "vgg16"              # one of the architectures by torchvision's names
weights = "birds.pth"       # in the same folder
mean = [0.5, 0.5, 0.5]      # of training; by default the weights file's, else ImageNet's, and then
std = [0.25, 0.25, 0.25]    # every result says that this is assumed
range = "0-1"               # of a pixel before mean and std: or "0-255"
order = "rgb"               # of the channels, and of mean and std: or "bgr"
channels = 3                # of the input: or 1 (grey), which requires mean and std
input_size = 224            # pixels a side, or [height, width]; by default the architecture's own
resize = "squash"           # of images with another aspect ratio: or "crop" to the middle
title = "Birds, 2025"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.catalogue import Network, Size, frame_of
from shared.errors import brief
from shared.images import Frame
from shared.schemas import Channels, Preprocessing
from worker.networks.architectures import ARCHITECTURES, describe, layers_of

FILE = "networks.toml"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

LEAST_STD = 1e-6
SMALLEST, LARGEST = 32, 1024  # pixels a side


def _sides(value: Any) -> Any:
    """The sides of `224`, `[96, 128]` or, from a command line, `"224"` and `"96x128"`."""
    parts = value.split("x") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    sides = [_whole(part) for part in parts]
    if len(sides) not in (1, 2) or not all(SMALLEST <= side <= LARGEST for side in sides):
        raise ValueError(f"must be the pixels a side, or height and width, each from {SMALLEST} to {LARGEST}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


def _whole(value: Any) -> int:
    """The number if it is whole, else 0."""
    text = str(value).removesuffix(".0")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float | str) else value


Numbers = Annotated[Channels, BeforeValidator(_listed)]


class InputDefinition(BaseModel):
    """The preprocessing, input size and title of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Numbers | None = None
    std: Numbers | None = None
    range: Literal["0-1", "0-255"] = "0-1"
    order: Literal["rgb", "bgr"] = "rgb"
    channels: Literal[1, 3] = 3
    input_size: Annotated[Size, BeforeValidator(_sides)] | None = None
    resize: Literal["squash", "crop"] = "squash"
    title: str = Field("", max_length=200)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or neither")
        for numbers in filter(None, (self.mean, self.std)):
            if len(numbers) != self.channels:
                raise ValueError(f"mean and std have a number for each channel: {self.channels}; see channels")
        if self.channels == 1 and (self.mean is None or self.order != "rgb"):
            raise ValueError("one channel has no order, and needs mean and std")
        if self.std is not None and not all(LEAST_STD <= one <= 1e6 for one in self.std):
            raise ValueError(f"each number of std must be above zero, from {LEAST_STD:g} on")
        if self.mean is not None and self.range == "0-1" and not all(0 <= one <= 1 for one in self.mean):
            raise ValueError('a mean outside 0 to 1 is one of pixels from 0 to 255; if so, set range = "0-255"')
        if self.mean is not None and not all(0 <= one <= 255 for one in self.mean):
            raise ValueError("each number of mean must be from 0 to 255")
        if self.mean is None and (self.range, self.order) != ("0-1", "rgb"):
            raise ValueError("a range or an order needs mean and std in its own terms; give them too")
        return self

    def preprocessing(self, otherwise: Preprocessing | None) -> Preprocessing:
        """The preprocessing defined here, else the default.

        Args:
            otherwise: the default, from the weights file or assumed; None for grey input, which has no default.
        """
        if self.mean is None or self.std is None:
            assert otherwise
            return otherwise.model_copy(update={"resize": self.resize})
        order = self.order if self.channels == 3 else "grey"
        return Preprocessing(mean=self.mean, std=self.std, range=self.range, order=order, resize=self.resize)

    def frame(self, usual: Frame) -> Frame:
        """The input's frame.

        Args:
            usual: the default size.
        """
        return frame_of(self.input_size or usual[:2], self.channels)


class Definition(InputDefinition):
    """A registered network: an architecture with weights."""

    arch: str
    weights: str = Field(min_length=1)

    @property
    def input(self) -> Frame:
        """The frame of the network's input."""
        return self.frame(ARCHITECTURES[self.arch].frame)

    @field_validator("arch")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError(f"there is no architecture {brief(value)}; there are {', '.join(ARCHITECTURES)}")
        return value

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if self.input_size:
            layers_of(self.arch, self.input)  # raises ValueError if it is too small
        return self

    @field_validator("weights")
    @classmethod
    def _inside(cls, value: str) -> str:
        if Path(value).name != value or value in {".", ".."} or "\0" in value:
            raise ValueError("give the name of a file in the weights folder")
        return value


def registered(name: str, definition: Definition) -> Network:
    """The catalogue's entry of a registered network."""
    found = describe(definition.arch, definition.input)
    title = definition.title or f"{name}: {found.title}"
    return found.model_copy(update={"name": name, "title": title, "architecture": definition.arch})


@dataclass(frozen=True)
class Definitions:
    """The contents of `networks.toml`."""

    networks: dict[str, Definition] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)  # errors of other tables, by name
    files: frozenset[str] = frozenset()  # that any table names, valid or not; they belong to no other network
    unreadable: str = ""  # why the file cannot be read

    @property
    def troubles(self) -> str:
        """The errors of the file as text."""
        return self.unreadable or "; ".join(f"[{name}] {text}" for name, text in self.wrong.items())


def definitions(folder: Path) -> Definitions:
    """The registered networks of a weights folder. Cached until the file changes."""
    file = folder / FILE
    try:
        status = file.stat()
        return _read(file, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return Definitions()
    except OSError as error:
        return Definitions(unreadable=f"cannot be read ({error.strerror})")


@lru_cache(maxsize=16)
def _read(file: Path, modified: int, size: int) -> Definitions:  # noqa: ARG001 - part of the cache's key
    try:
        tables = tomllib.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # of TOML, encoding, a huge number or deep nesting
        return Definitions(unreadable=f"is not valid TOML: {error}")
    found: dict[str, Definition] = {}
    wrong: dict[str, str] = {}
    for name, table in tables.items():
        try:
            found[name] = checked(name, table)
        except ValueError as error:
            wrong[name] = str(error)
    named = (table.get("weights") for table in tables.values() if isinstance(table, Mapping))
    return Definitions(found, wrong, frozenset(one for one in named if isinstance(one, str)))


def valid_name(name: str) -> bool:
    """Whether a network may be registered under this name."""
    return name not in ARCHITECTURES and bool(NAME.fullmatch(name))


def checked(name: str, table: Any) -> Definition:
    """Validate one entry.

    Raises:
        ValueError: the entry is invalid.
    """
    if name in ARCHITECTURES:
        raise ValueError("this is the name of an architecture; choose another")
    if not NAME.fullmatch(name):
        raise ValueError("a name has lower-case letters, digits, '.', '_' and '-', 64 at most")
    if not isinstance(table, Mapping):
        raise ValueError(f"write it as a table: [{name}], then arch and weights")  # noqa: TRY004 - as the others
    try:
        return Definition.model_validate(dict(table))
    except ValidationError as error:
        raise ValueError(validation_message(error, Definition)) from None


def validation_message(error: ValidationError, entry: type[InputDefinition]) -> str:
    """The errors of an entry of this kind as text."""
    names = [
        *(name for name in entry.model_fields if name not in InputDefinition.model_fields),
        *InputDefinition.model_fields,
    ]
    return "; ".join(_message(one, names) for one in error.errors())


def _message(error: Any, names: list[str]) -> str:
    where = ".".join(map(str, error["loc"]))
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = f"unknown; the fields are {', '.join(names)}"
    return f"{where}: {text}" if where else text
