"""Selects the files of the wheel: the client, and the modules of `shared` that it imports, as `kernelscope._shared`."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[2]
VENDORED = "kernelscope._shared"
IMPORT = re.compile(r"^(\s*(?:from|import) )shared\b", re.MULTILINE)
BUILD_TOOLS = {"kernelscope/client/generate.py"}
BESIDE = {"kernelscope/py.typed": "", "kernelscope/client/LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8")}


def sources() -> dict[str, str]:
    """Every Python file of the wheel, by its path there."""
    own = [ROOT / "kernelscope/__init__.py", *sorted((ROOT / "kernelscope/client").rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in own}
    for name in BUILD_TOOLS:
        del found[name]
    for path in sorted(_modules(found.values())):
        found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    folder = VENDORED.replace(".", "/")
    return {re.sub("^shared", folder, path): IMPORT.sub(rf"\1{VENDORED}", text) for path, text in found.items()}


def _modules(texts: Any) -> set[Path]:
    """The files of `shared` that these sources import, and those that these import in turn."""
    found: set[Path] = set()
    unread = list(texts)
    while unread:
        for path in _imported(unread.pop()) - found:
            found.add(path)
            unread.append(path.read_text(encoding="utf-8"))
    return found


def _imported(text: str) -> set[Path]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] == "shared"]
    packages = {ROOT.joinpath(*part[:end], "__init__.py") for part in parts for end in range(1, len(part) + 1)}
    modules = {ROOT.joinpath(*part).with_suffix(".py") for part in parts}
    return {path for path in packages | modules if path.is_file()}


class Vendoring(BuildHookInterface[Any]):
    """Writes the sources to a temporary folder, from which they are packed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Called before the wheel is built."""
        self.folder = TemporaryDirectory()
        for name, text in {**sources(), **BESIDE}.items():
            file = Path(self.folder.name) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            build_data["force_include"][str(file)] = name

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Called after the wheel is built."""
        self.folder.cleanup()
