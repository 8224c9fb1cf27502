"""Imports go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"api", "kernelscope", "shared", "worker"}

# For each folder or file (the longest that fits counts): what it may not import.
FORBIDDEN = {
    "shared": {"fastapi", "starlette", "torch", "torchvision", "celery", "kombu", "api", "worker", "kernelscope"},
    "shared/queue.py": {"fastapi", "starlette", "torch", "torchvision", "api", "worker", "kernelscope"},
    "api": {"torch", "torchvision", "worker", "kernelscope"},
    "worker": {"fastapi", "starlette", "api", "kernelscope"},
    "worker/suppression": {"celery", "kombu", "redis", "shared", "api", "kernelscope", "pathlib", "obstore", "PIL"},
    "kernelscope": {"fastapi", "starlette", "torch", "torchvision", "celery", "kombu", "api", "worker"},
}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def _files() -> list[Path]:
    return [file for folder in sorted(OURS) for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_its_place_allows(file: Path) -> None:
    """The rule of the house, file by file."""
    place = file.relative_to(ROOT).as_posix()
    rule = max((prefix for prefix in FORBIDDEN if place.startswith(prefix)), key=len)
    found = {module for module in _imports(file) if module.split(".")[0] in FORBIDDEN[rule]}
    allowed_inside = {
        module for module in found if rule == "worker/suppression" and module.startswith("worker.suppression")
    }
    assert found - allowed_inside == set()


def test_suppression_imports_nothing_else_of_the_worker() -> None:
    """The mathematics can be lifted out of the project as it is."""
    for file in (ROOT / "worker" / "suppression").glob("*.py"):
        ours = {module for module in _imports(file) if module.split(".")[0] in OURS}
        assert all(module.startswith("worker.suppression") for module in ours), file


def test_the_rule_sees_a_forbidden_import(tmp_path: Path) -> None:
    """The test can fail."""
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from torch import nn\n    import worker.engine\n")
    assert set(_imports(file)) == {"torch", "worker.engine"}


@pytest.mark.parametrize("module", ["api.app", "api.housekeeping", "kernelscope.cli"])
def test_a_process_without_torch_really_has_none(module: str) -> None:
    """Not only our own imports: nothing that they import brings torch in."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'worker' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
