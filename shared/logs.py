"""The log format of every process: one line per event, with its context (request, job, slice).

Of the data that clients send only identifiers are logged: no images, keys or headers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

_bound: ContextVar[dict[str, object]] = ContextVar("bound", default={})  # noqa: B039 - never changed, only replaced

CHATTY = ("httpx", "httpcore", "kombu", "PIL", "urllib3")
Form = Literal["text", "json"]


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add these fields to every line that is logged in this context."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def configure(level: str, form: Form = "text") -> None:
    """Log to stderr, from this level up.

    Text: `2026-11-23 09:30:01 INFO worker.jobs.runner: begun job_id=9441…`. JSON: the same data, one object per line.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_bind)
    as_json = JsonFormatter(JSON, rename_fields=NAMES, reserved_attrs=[*RESERVED_ATTRS, "fields"])
    handler.setFormatter(as_json if form == "json" else _Text(TEXT, "%F %T"))
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))


TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON = "%(asctime)s %(levelname)s %(name)s %(message)s"
NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "message": "event"}


def _bind(record: logging.LogRecord) -> bool:
    fields = _bound.get()
    for name, value in fields.items():
        setattr(record, name, value)
    record.fields = fields
    return True


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        fields: dict[str, object] = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])
