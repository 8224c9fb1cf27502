"""Resolve the locked requirements anew: `make lock`. Hashes, no addresses; every platform in one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each file, and the extras of pyproject.toml that it holds.
FILES = {
    "all.txt": ["--all-extras"],
    "api.txt": ["--extra", "api", "--constraint", "requirements/all.txt"],
    "worker.txt": ["--extra", "worker", "--constraint", "requirements/all.txt"],
    "worker-cpu.txt": [
        *("--extra", "worker-cpu", "--constraint", "requirements/all.txt"),
        *("--override", "requirements/without-torch.txt"),
    ],
}
COMMON = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--quiet"]


def main() -> None:
    """Write every file; the others follow the versions of all.txt."""
    for name, options in FILES.items():
        command = ["uv", "pip", "compile", "pyproject.toml", *options, *COMMON]
        header = ["--custom-compile-command", "make lock"]
        subprocess.run(
            [sys.executable, "-m", *command, *header, "--output-file", f"requirements/{name}", *sys.argv[1:]],
            check=True,
            cwd=ROOT,
        )


if __name__ == "__main__":
    main()
