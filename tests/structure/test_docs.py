"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import SecretStr

from shared.schemas import ActivationsOptions, ExplainOptions
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
COMPOSE_ONLY = ["KERNELSCOPE_S3_PASSWORD"]
WITH_PATHS = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
PATH = re.compile(r"`((?:api|benchmarks|docs|kernelscope|shared|tests|worker)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def settings_table() -> str:
    """The settings table as docs/settings.md must have it."""
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


def anchors(page: Path) -> set[str]:
    """The fragments by which the page's headings can be linked to, as GitHub forms them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_settings_table_is_the_code_s() -> None:
    """Every setting with its default and its meaning, and none that does not exist."""
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text()


def test_the_example_of_an_environment_has_every_setting() -> None:
    """With its default and its meaning; those beside them are Compose's own."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    reported = dict(line.removeprefix("#").split("=", 1) for line in lines if line.startswith("#KERNELSCOPE_"))
    assert set(reported) == {
        *COMPOSE_ONLY,
        *(f"KERNELSCOPE_{name.upper()}" for name in Settings.model_fields),
    }
    given = {name.removeprefix("KERNELSCOPE_").lower(): value for name, value in reported.items() if value}
    for name in COMPOSE_ONLY:
        del given[name.removeprefix("KERNELSCOPE_").lower()]
    assert Settings.model_validate(given) == Settings(_env_file=None)
    assert all(f"# {field.description}" in lines for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", WITH_PATHS)
def test_every_path_that_a_page_names_exists(name: str) -> None:
    """`folder/file.py` in the page is a file of the repository."""
    named = set(PATH.findall((ROOT / name).read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_architecture_names_paths() -> None:
    """The test above finds what it is to compare."""
    assert len(PATH.findall((ROOT / "docs" / "architecture.md").read_text())) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the repository, and where it has a fragment, to a heading of that page."""
    broken = []
    for target, fragment in LINK.findall(page.read_text()):
        file = (page.parent / target) if target else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(f"{target}#{fragment}")
    assert broken == []


def choices(kind: object) -> set[str]:
    """The strings that a type allows, also in its parts."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return set().union(*map(choices, get_args(kind)))


def request_fields() -> set[str]:
    """The fields of requests with images, and the values of those that have a choice."""
    fields = ExplainOptions.model_fields | ActivationsOptions.model_fields
    return {*fields, *(value for field in fields.values() for value in choices(field.annotation))}


def test_the_page_of_the_api_names_every_field_and_choice_of_a_request() -> None:
    """Each method, effort, solver, rule and scaling, in its section about the request."""
    assert {"methods", "evidence", "lrp", "thorough", "reference", "gamma_epsilon"} <= request_fields()
    text = (ROOT / "docs" / "http-api.md").read_text()
    section = text.partition("## The request")[2].partition("\n## ")[0]
    assert sorted(request_fields() - set(re.findall(r"`([^`]+)`", section))) == []


def test_the_settings_of_tests_are_those_that_ci_sets() -> None:
    """CONTRIBUTING.md names all of them, and pyproject.toml none that does not exist."""
    exported, contributing, project = (
        set(re.findall(r"KERNELSCOPE_TEST_\w+", (ROOT / name).read_text()))
        for name in (".ci/run", "CONTRIBUTING.md", "pyproject.toml")
    )
    assert contributing == exported
    assert project <= exported
