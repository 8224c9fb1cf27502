"""The base class of all errors that the API returns, and the problem (RFC 9457) that each becomes."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

MOST_DETAIL = 2000  # characters


class Problem(BaseModel):
    """An `application/problem+json` object (RFC 9457); additional members depend on its type."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str

    def under(self, root: str) -> Self:
        """The problem with the URL of its page under this path."""
        return self.model_copy(update={"type": root + self.type}) if self.type.startswith("/") else self


def brief(text: object, most: int = 60) -> str:
    """A value from a request, shortened so that a response does not repeat all of it."""
    shown = str(text)
    return shown if len(shown) <= most else f"{shown[:most]}…"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class KernelscopeError(Exception):
    """An internal error. The details are in the log of the process."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    always: ClassVar[dict[str, str]] = {}  # headers of every response of this type

    def __init__(
        self, detail: str, *, headers: dict[str, str] | None = None, retry_after: int | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.headers = {**self.always, **(headers or {})}
        if retry_after is not None:
            self.members["retry_after"] = retry_after
            self.headers["Retry-After"] = str(retry_after)

    @classmethod
    def slug(cls) -> str:
        """`SilentKernel` → `silent-kernel`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()

    @classmethod
    def type_uri(cls) -> str:
        """The problem's `type`: the path of the page that explains it."""
        return f"/problems/{cls.slug()}"

    def problem(self) -> Problem:
        """The error as returned to the client."""
        return Problem(
            type=self.type_uri(),
            title=self.title,
            status=self.status,
            detail=brief(self.detail, MOST_DETAIL),
            **self.members,
        )


def error_types() -> dict[str, type[KernelscopeError]]:
    """Every problem type by its slug."""
    kinds: list[type[KernelscopeError]] = [KernelscopeError, *KernelscopeError.__subclasses__()]
    return {kind.slug(): kind for kind in kinds}
