"""Settings that are probably mistakes, though a process can run with them: for its log, and for the doctor."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from shared.settings import ENV_FILE, Settings
from shared.version import version_text

log = logging.getLogger(__name__)

PREFIX = "KERNELSCOPE_"
TRIAL_PASSWORD = "kernelscope"  # noqa: S105 - Compose's, which everybody can read
# Read by programs without being settings of a process: by clients, by Compose, by images, by tests.
OTHERS = ("ENV_FILE", "URL", "API_KEY", "S3_PASSWORD", "REVISION", "FULL_COUNTS")
OTHER_PREFIX = "TEST_"


def advice(settings: Settings) -> list[str]:
    """A sentence on each such mistake in these settings, the environment and the `.env` that they came from."""
    return [*_misspelt({*os.environ, *named_in(ENV_FILE)}), *_ignored_file(), *_passwords(settings)]


def named_in(file: Path | None) -> list[str]:
    """The names of Kernelscope's settings in an `.env` file; none if there is no such file."""
    try:
        return [name for name in (dotenv_values(file) if file else ()) if name.upper().startswith(PREFIX)]
    except (OSError, ValueError):  # a folder, or not text
        return []


def log_start(settings: Settings, what: str) -> None:
    """Log that a program starts, its version, and every such mistake."""
    log.info("%s begins, Kernelscope %s", what, version_text())
    for sentence in advice(settings):
        log.warning("%s", sentence)


def _misspelt(names: Iterable[str]) -> Iterator[str]:
    known = [*(name.upper() for name in Settings.model_fields), *OTHERS]
    for name in sorted({name.upper() for name in names}):
        own = name.removeprefix(PREFIX)
        if own != name and own not in known and not own.startswith(OTHER_PREFIX):
            near = difflib.get_close_matches(own, known, 1)
            question = f": did you mean {PREFIX}{near[0]}?" if near else ""
            yield f"{name} is not a setting and has no effect{question}"


def _ignored_file() -> Iterator[str]:
    """An `.env` in the current folder that is not the one that is read."""
    try:
        here = Path.cwd() / ".env"
        other = here.exists() and not (ENV_FILE and ENV_FILE.exists() and here.samefile(ENV_FILE))
    except OSError:  # the folder is removed, or not readable
        return
    if other and named_in(here):
        yield f"{here} has settings of Kernelscope, but is not read; KERNELSCOPE_ENV_FILE={here} reads it"


def _passwords(settings: Settings) -> Iterator[str]:
    change = "change it before others can reach this machine"
    if urlsplit(settings.redis).password == TRIAL_PASSWORD:
        yield f"Redis has the default password, which is public; {change} (KERNELSCOPE_REDIS_PASSWORD)"
    if settings.store.startswith("s3:") and os.environ.get("AWS_SECRET_ACCESS_KEY") == TRIAL_PASSWORD:
        yield f"the object store has the default password, which is public; {change} (KERNELSCOPE_S3_PASSWORD)"
