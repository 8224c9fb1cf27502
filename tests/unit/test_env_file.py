"""Which `.env` file is read: that of a checkout, and none beside an installed program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = (
    "from shared.advice import advice; from shared.settings import ENV_FILE, Settings; "
    "print(Settings().port, ENV_FILE, *advice(Settings()))"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The packages in a folder of packages, in which somebody has put an `.env`."""
    shutil.copytree(ROOT / "shared", tmp_path / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".env").write_text("KERNELSCOPE_PORT=1234\n")
    return tmp_path


def shown(folder: Path, **environment: str) -> list[str]:
    """The port, the file that is read, and what is advised."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KERNELSCOPE_")}
    ran = subprocess.run(
        [sys.executable, "-c", SHOWN],
        cwd="/",
        env={**clean, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.split()


def test_an_installed_program_reads_only_the_file_that_is_named(installed: Path) -> None:
    """Not the one beside its packages, also where these are in another project's folder."""
    assert shown(installed) == ["8000", "None"]
    (installed / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert shown(installed) == ["8000", "None"]
    named = str(installed / ".env")
    assert shown(installed, KERNELSCOPE_ENV_FILE=named) == ["1234", named]


def test_a_checkout_reads_its_own(installed: Path) -> None:
    """From any folder."""
    shutil.copy(ROOT / "pyproject.toml", installed)
    assert shown(installed) == ["1234", str(installed / ".env")]
