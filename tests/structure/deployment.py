"""The compose file and the Dockerfiles, as they are in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name in SERVICES if name != "redis"]
FILES = ["docker-compose.yml", "compose.gpu.yml", "compose.s3.yml"]
DOCKERFILES = ["Dockerfile.api", "Dockerfile.worker"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments), continuation lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / name).read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def command(name: str) -> list[str]:
    """The words of the last CMD."""
    arguments = [arguments for word, arguments in instructions(name) if word == "CMD"][-1]
    words: list[str] = yaml.safe_load(arguments)
    return words
