"""Warnings about the settings of a process, which it logs at its start and `kernelscope doctor` shows."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from dotenv import dotenv_values

from shared.settings import Settings
from shared.version import told

log = logging.getLogger(__name__)

PREFIX = "KERNELSCOPE_"
TRIAL_PASSWORD = "kernelscope"  # noqa: S105 - the public default of docker-compose.yml
# Variables of clients, Compose, container images and tests; no settings of a process.
OTHERS = ("URL", "API_KEY", "S3_PASSWORD", "REVISION", "FULL_COUNTS")
OTHER_PREFIX = "TEST_"


def advice(settings: Settings) -> list[str]:
    """A sentence on each problem in these settings, and in the environment and the `.env` that they came from."""
    return [*_misspelt({*os.environ, *dotenv_values(".env")}), *_passwords(settings)]


def begin(settings: Settings, what: str) -> None:
    """Log the start of a program, with its version and all warnings."""
    log.info("%s starts, Kernelscope %s", what, told())
    for sentence in advice(settings):
        log.warning("%s", sentence)


def _misspelt(names: Iterable[str]) -> Iterator[str]:
    known = [*(name.upper() for name in Settings.model_fields), *OTHERS]
    for name in sorted({name.upper() for name in names}):
        own = name.removeprefix(PREFIX)
        if own != name and own not in known and not own.startswith(OTHER_PREFIX):
            near = difflib.get_close_matches(own, known, 1)
            meant = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            yield f"{name} is not a setting and has no effect{meant}"


def _passwords(settings: Settings) -> Iterator[str]:
    change = "change it before others can reach this machine"
    if urlsplit(settings.redis).password == TRIAL_PASSWORD:
        yield f"Redis has the public default password; {change} (KERNELSCOPE_REDIS_PASSWORD)"
    if settings.store.startswith("s3:") and os.environ.get("AWS_SECRET_ACCESS_KEY") == TRIAL_PASSWORD:
        yield f"the object store has the public default password; {change} (KERNELSCOPE_S3_PASSWORD)"
