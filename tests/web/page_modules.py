"""Programs that import the page's modules, run by Node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import node

WEB = Path(__file__).parents[2] / "api" / "web"


def run(program: str, **names: object) -> Any:
    """What a program prints, which may import the page's modules."""
    for name, value in names.items():
        program = program.replace(name, json.dumps(value))
    command = [node(), "--input-type=module", "--eval", program.replace("WEB/", f"{WEB.as_uri()}/")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
