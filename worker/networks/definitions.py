"""Networks that people register: `networks.toml` in the weights folder gives names to architectures with weights.

[birds]
arch = "vgg16"              # one of the architectures by torchvision's names
weights = "birds.pth"       # in the same folder
mean = [0.5, 0.5, 0.5]      # what the network was trained with; as the weights file says, else ImageNet's,
std = [0.25, 0.25, 0.25]    # and then every result says that this is assumed
range = "0-1"               # of a pixel before mean and std: or "0-255"
order = "rgb"               # of the channels, and of mean and std: or "bgr"
title = "Birds, 2025"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from shared.catalogue import Network
from shared.errors import brief
from shared.schemas import Preprocessing
from worker.networks.architectures import ARCHITECTURES, describe

FILE = "networks.toml"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

LEAST_STD = 1e-6

Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class Definition(BaseModel):
    """What a name stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    weights: str = Field(min_length=1)
    mean: Channels | None = None
    std: Channels | None = None
    range: Literal["0-1", "0-255"] = "0-1"
    order: Literal["rgb", "bgr"] = "rgb"
    title: str = Field("", max_length=200)

    @field_validator("arch")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError(f"there is no architecture {brief(value)}; there are {', '.join(ARCHITECTURES)}")
        return value

    @field_validator("weights")
    @classmethod
    def _inside(cls, value: str) -> str:
        if Path(value).name != value or value in {".", ".."} or "\0" in value:
            raise ValueError("give the name of a file in the weights folder")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both, or neither")
        if self.std is not None and not all(LEAST_STD <= one <= 1e6 for one in self.std):
            raise ValueError(f"each number of std must be above zero, from {LEAST_STD:g} on")
        if self.mean is not None and self.range == "0-1" and not all(0 <= one <= 1 for one in self.mean):
            raise ValueError('a mean outside 0 to 1 is one of pixels from 0 to 255; if so, say range = "0-255"')
        if self.mean is not None and not all(0 <= one <= 255 for one in self.mean):
            raise ValueError("each number of mean must be from 0 to 255")
        if self.mean is None and (self.range, self.order) != ("0-1", "rgb"):
            raise ValueError("a range or an order needs mean and std in its own terms; give them too")
        return self

    def preprocessing(self, of_file: Preprocessing) -> Preprocessing:
        """What is said here, else what the weights file says, else what is assumed."""
        if self.mean is None or self.std is None:
            return of_file
        return Preprocessing(mean=self.mean, std=self.std, range=self.range, order=self.order)


def registered(name: str, definition: Definition) -> Network:
    """The catalogue's entry: that of the architecture under another name."""
    found = describe(definition.arch)
    title = definition.title or f"{name}: {found.title}"
    return found.model_copy(update={"name": name, "title": title, "architecture": definition.arch})


@dataclass(frozen=True)
class Registered:
    """What `networks.toml` says."""

    networks: dict[str, Definition] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)  # what is wrong with other tables, by name
    files: frozenset[str] = frozenset()  # that any table names, right or wrong: they are nobody else's
    unreadable: str = ""  # why nobody knows what it says

    @property
    def troubles(self) -> str:
        """What is wrong with it, in words."""
        return self.unreadable or "; ".join(f"[{name}] {text}" for name, text in self.wrong.items())


def definitions(folder: Path) -> Registered:
    """The networks of a weights folder. A file that has not changed is not read again."""
    file = folder / FILE
    try:
        status = file.stat()
        return _read(file, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return Registered()
    except OSError as error:
        return Registered(unreadable=f"cannot be read ({error.strerror})")


@lru_cache(maxsize=16)
def _read(file: Path, modified: int, size: int) -> Registered:  # noqa: ARG001 - with which it changes
    try:
        tables = tomllib.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # of TOML, of its encoding, of a number or a nesting without end
        return Registered(unreadable=f"is no TOML: {error}")
    found: dict[str, Definition] = {}
    wrong: dict[str, str] = {}
    for name, table in tables.items():
        try:
            found[name] = checked(name, table)
        except ValueError as error:
            wrong[name] = str(error)
    named = (table.get("weights") for table in tables.values() if isinstance(table, Mapping))
    return Registered(found, wrong, frozenset(one for one in named if isinstance(one, str)))


def may_be(name: str) -> bool:
    """Whether a network may be registered under this name."""
    return name not in ARCHITECTURES and bool(NAME.fullmatch(name))


def checked(name: str, table: Any) -> Definition:
    """One entry.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    if name in ARCHITECTURES:
        raise ValueError("this name is an architecture's own; take another")
    if not NAME.fullmatch(name):
        raise ValueError("a name has lower-case letters, digits, '.', '_' and '-', 64 at most")
    if not isinstance(table, Mapping):
        raise ValueError(f"write it as a table: [{name}], then arch and weights")  # noqa: TRY004 - as the others
    try:
        return Definition.model_validate(dict(table))
    except ValidationError as error:
        raise ValueError("; ".join(map(_told, error.errors()))) from None


def _told(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = f"is none of {', '.join(Definition.model_fields)}"
    return f"{where}: {text}" if where else text
