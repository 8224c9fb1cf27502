"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr

from shared.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def settings_table() -> str:
    """The settings table as the README must have it."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        elif isinstance(default, tuple):
            default = ",".join(default)
        elif name == "data_dir":
            default = "the user's data folder"
        shown = "" if default in (None, "") else f"`{default}`" if name != "data_dir" else default
        rows.append(f"| `KERNELSCOPE_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_code_s() -> None:
    """Every setting with its default and its meaning, and none that does not exist."""
    assert settings_table() in README


def test_every_path_that_the_readme_names_exists() -> None:
    """`folder/file.py` in the README is there."""
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`((?:api|benchmarks|docs|kernelscope|shared|tests|worker)/[\w./-]*)`", README))
    assert named
    assert [path for path in sorted(named) if not (root / path).exists()] == []
