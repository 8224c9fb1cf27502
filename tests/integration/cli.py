"""The command line as a person types it, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "kernelscope"]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without anything of this machine's."""
    own = {
        "KERNELSCOPE_DATA_DIR": str(folder / "data"),
        "KERNELSCOPE_DOWNLOAD_WEIGHTS": "false",
        "TMPDIR": str(folder),
        "COLUMNS": "140",
        "HTTP_PROXY": "http://127.0.0.1:9",  # which must not come between this machine and itself
        "NO_PROXY": "",
        "no_proxy": "",
        **environment,
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def until_said(file: Path, text: str) -> None:
    """Waits until a command has said this."""
    deadline = time.monotonic() + 60
    while text not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.05)
