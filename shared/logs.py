"""One form of log line for every process."""

from __future__ import annotations

import logging


def configure(level: str) -> None:
    """Log to stderr from this level up: `2026-11-23 09:30:01 INFO worker.runner: …`."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%F %T")
    for chatty in ("httpx", "httpcore", "kombu", "PIL"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
