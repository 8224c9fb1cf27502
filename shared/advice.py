"""What is odd about the settings of a process, though it can run with them; told at its start and by the doctor."""

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
TRIAL_PASSWORD = "kernelscope"  # noqa: S105 - Compose's, which everybody can read
# Read by programs without being settings of a process: by clients, by Compose, by images, by tests.
OTHERS = ("URL", "API_KEY", "S3_PASSWORD", "REVISION", "FULL_COUNTS")
OTHER_PREFIX = "TEST_"


def advice(settings: Settings) -> list[str]:
    """A sentence on each oddity of these settings, and of the environment and the `.env` that they came from."""
    return [*_misspelt({*os.environ, *dotenv_values(".env")}), *_passwords(settings)]


def begin(settings: Settings, what: str) -> None:
    """Log that a program begins, which one, and every oddity."""
    log.info("%s begins, Kernelscope %s", what, told())
    for sentence in advice(settings):
        log.warning("%s", sentence)


def _misspelt(names: Iterable[str]) -> Iterator[str]:
    known = [*(name.upper() for name in Settings.model_fields), *OTHERS]
    for name in sorted({name.upper() for name in names}):
        own = name.removeprefix(PREFIX)
        if own != name and own not in known and not own.startswith(OTHER_PREFIX):
            near = difflib.get_close_matches(own, known, 1)
            meant = f"; {PREFIX}{near[0]} is one" if near else ""
            yield f"{name} is not a setting, and has no effect{meant}"


def _passwords(settings: Settings) -> Iterator[str]:
    change = "change it before others can reach this machine"
    if urlsplit(settings.redis).password == TRIAL_PASSWORD:
        yield f"Redis has the password that everybody knows; {change} (KERNELSCOPE_REDIS_PASSWORD)"
    if settings.store.startswith("s3:") and os.environ.get("AWS_SECRET_ACCESS_KEY") == TRIAL_PASSWORD:
        yield f"the object store has the password that everybody knows; {change} (KERNELSCOPE_S3_PASSWORD)"
