"""The examples of docs/http-api.md run as they are and print what the page shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import running
from tests.conftest import node

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```(sh|python|js)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
PAGE = (ROOT / "docs" / "http-api.md").read_text()
EXAMPLES = {language: (code, output) for language, code, output in EXAMPLE.findall(PAGE)}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running service with a real worker."""
    with running(tmp_path_factory.mktemp("examples"), "worker") as plant:
        yield plant.url


@pytest.mark.parametrize("language", ["sh", "python", "js"])
def test_an_example_prints_what_the_page_shows(url: str, tmp_path: Path, language: str) -> None:
    """In a folder with the image that it sends."""
    code, output = EXAMPLES[language]
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "green-kernel.png", tmp_path / "docs")
    text = code.replace("http://localhost:8000", url).replace("localhost:8000", url)
    file = tmp_path / f"example.{'mjs' if language == 'js' else language}"
    file.write_text(text)
    program = {"sh": "sh", "python": sys.executable, "js": node()}[language]
    ran = subprocess.run([program, str(file)], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    assert ran.stdout.strip() == output.strip()
