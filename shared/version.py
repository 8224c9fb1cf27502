"""The version of Kernelscope, defined here only; container images also set the revision."""

from __future__ import annotations

import os

VERSION = "1.0.0rc1"
REVISION = os.environ.get("KERNELSCOPE_REVISION", "unknown")  # the commit from which a container image was built


def version_text() -> str:
    """Version and revision, such as `1.0.0rc1 (94416590)`."""
    return f"{VERSION} ({REVISION[:8]})"
