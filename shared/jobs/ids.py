"""Ids of jobs: UUIDs of version 7, 32 hex digits, whose first twelve are the time of creation."""

from __future__ import annotations

import re
import secrets
import time

JOB_ID = re.compile(r"[0-9a-f]{32}")
MADE = re.compile(r"([0-9a-f]{12})7[0-9a-f]{3}[89ab][0-9a-f]{15}")
FIRST = 1_790_000_000.0  # in September 2026; ids of this form were introduced later


def new_id() -> str:
    """A unique id. Ids do not define an order, as the clocks of machines differ."""
    random = secrets.randbits(74)
    value = int(1000 * time.time()) << 80 | 0x7 << 76 | random >> 62 << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return f"{value:032x}"


def made_at(job_id: str) -> float | None:
    """When an id was created, in seconds since 1970; None for ids without a time."""
    match = MADE.fullmatch(job_id)
    made = int(match[1], 16) / 1000 if match else 0.0
    return made if FIRST < made < time.time() + 3600 else None
