"""Conditional requests and caching (RFC 9110, RFC 9111)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

IMMUTABLE = "private, max-age=31536000, immutable"  # Cache-Control of content that never changes

IfNoneMatch = Annotated[str, Header()]


def etag_matches(etag: str, condition: str) -> bool:
    """Whether an `If-None-Match` includes this tag: the client's copy is current."""
    return condition.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in condition.split(",")]
