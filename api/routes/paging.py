"""Parameters of lists that are read page by page."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

CURSOR = "`next_cursor` of the previous page"

IndexCursor = Annotated[str | None, Query(max_length=20, pattern=r"^\d{1,9}$", description=CURSOR)]
