"""Which Kernelscope this is. Its version stands here and is read everywhere else; images know their revision too."""

from __future__ import annotations

import os

VERSION = "1.0.0rc1"
REVISION = os.environ.get("KERNELSCOPE_REVISION", "unknown")  # the commit that an image was built of


def told() -> str:
    """Both, `1.0.0rc1 (94416590)`."""
    return f"{VERSION} ({REVISION[:8]})"
