"""Imports go one way; files are short."""

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
# Inside api/ routes → surveys → (jobs, pictures) → edge, inside worker/ jobs → engine → networks → methods: a package
# imports only what is to the right of it.
NO_WEB = {"fastapi", "starlette", "api", "kernelscope"}
NO_JOBS = NO_WEB | {"celery", "kombu", "redis", "worker.jobs"}
NO_TORCH = {"torch", "torchvision", "worker", "kernelscope"}
FORBIDDEN = {
    "shared": {"fastapi", "starlette", "torch", "torchvision", "celery", "kombu", "api", "worker", "kernelscope"},
    "shared/queue.py": {"fastapi", "starlette", "torch", "torchvision", "api", "worker", "kernelscope"},
    "api": NO_TORCH,
    "api/jobs": NO_TORCH | {"api.routes", "api.pictures", "api.surveys"},
    "api/pictures": NO_TORCH | {"api.routes", "api.jobs", "api.surveys"},
    "api/surveys": NO_TORCH | {"api.routes"},
    "api/edge": NO_TORCH | {"api.routes", "api.jobs", "api.pictures", "api.surveys", "api.services"},
    "worker": NO_WEB,
    "worker/jobs": NO_WEB | {"torch", "torchvision", "worker.networks", "worker.methods"},
    "worker/engine": NO_JOBS,
    "worker/networks": NO_JOBS | {"worker.engine"},
    "worker/methods": NO_JOBS | {"worker.engine", "worker.networks", "shared.settings", "pathlib", "obstore", "PIL"},
    "worker/methods/suppression": NO_JOBS | {"worker", "shared", "pathlib", "obstore", "PIL"},
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


def _all_files() -> list[Path]:
    """Of the whole repository, without environments and caches."""
    folders = sorted(folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return [*sorted(ROOT.glob("*.py")), *(file for folder in folders for file in sorted(folder.rglob("*.py")))]


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_its_place_allows(file: Path) -> None:
    """The rule of the house, file by file."""
    place = file.relative_to(ROOT).as_posix()
    rule = max((prefix for prefix in FORBIDDEN if place.startswith(prefix)), key=len)
    own = rule.replace("/", ".")
    assert [
        module for module in _imports(file) if _within(module, FORBIDDEN[rule]) and not _within(module, {own})
    ] == []


def _within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("file", _all_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_short(file: Path) -> None:
    """At most 300 lines, in the tests as well."""
    assert len(file.read_text().splitlines()) <= 300


def test_redis_is_reached_with_its_password() -> None:
    """`Settings.redis` is the URL with it; `redis_url` alone may be without."""
    users = [file.name for file in _files() if "redis_url.get_secret_value" in file.read_text()]
    assert users == ["settings.py"]


def test_the_rule_sees_a_forbidden_import(tmp_path: Path) -> None:
    """The test can fail."""
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from torch import nn\n    import worker.engine.engine\n")
    assert set(_imports(file)) == {"torch", "worker.engine.engine"}


@pytest.mark.parametrize("module", ["api.app", "api.housekeeping", "kernelscope.cli"])
def test_a_process_without_torch_really_has_none(module: str) -> None:
    """Not only our own imports: nothing that they import brings torch in."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'worker' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
