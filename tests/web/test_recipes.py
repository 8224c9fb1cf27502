"""A job as commands, as the page shows them: run by Node."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Self

import typer

from kernelscope.cli import app
from shared.schemas import ExplainOptions
from tests.web.page_modules import WEB, run

HOSTILE = """it's "a"; $(touch x) `b` 猫,1.png"""
REQUEST: dict[str, Any] = {
    "model": "my 'net'",
    "layer": "layer3.1; rm",
    "kernels": [3, 16],
    "methods": ["evidence", "lrp"],
    "rule": "gamma_epsilon",
    "scaling": "minmax",
    "alpha": [0.5, 2.0],
    "beta": [1e-7],
    "solver": "fast",
    "effort": "quick",
    "iterations": 7,
    "target_ssim": 0.95,
    "max_preservation": 0.5,
    "only_remove": True,
    "gamma": 0.25,
    "max_invention": 0.1,
    "deadline_s": 600.0,
    "webhook_url": "https://example.com/done?a=1;type=x&b='c'",
}
RECIPE = """
const recipes = await import("WEB/recipes.js");
const request = REQUEST;
const place = { server: "http://lab:8000/ks/", key: true, name: ({ names }, at) => names[at] };
console.log(JSON.stringify(recipes[KIND](request, place)));
"""


def written(value: object) -> str:
    """As JavaScript writes it."""
    if value is True:
        return "true"
    return (f"{value:g}" if isinstance(value, float) else str(value)).replace("e-07", "e-7")


def recipe(kind: str, **changes: object) -> str:
    """Of a request in which every option is set."""
    request = {**REQUEST, "images": ["a" * 64, "b" * 64], "names": [f"folder/{HOSTILE}", None], **changes}
    text: str = run(RECIPE, REQUEST=request, KIND=kind)
    return text


def test_every_option_is_in_the_request_of_these_tests() -> None:
    """Else they would not notice that one is missing in a command."""
    assert set(REQUEST) == set(ExplainOptions.model_fields)


def test_curl_has_every_field(tmp_path: Path) -> None:
    """As a shell reads it; values that curl would interpret are sent as they are."""
    words = shlex.split(recipe("curl"))
    assert words[0] == "curl"
    assert words[-1] == "http://lab:8000/ks/explain"
    assert "Authorization: Bearer YOUR-KEY" in words
    fields = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word in ("-F", "--form-string"))
    expected = {
        name: ",".join(map(written, value if isinstance(value, list) else [value])) for name, value in REQUEST.items()
    }
    images = [words[at + 1] for at, word in enumerate(words) if word == "-F" and words[at + 1].startswith("image=")]
    quoted = HOSTILE.replace('"', '\\"')
    assert images == [f'image=@"{quoted}"', f"image=@{'b' * 8}.png"]
    fields.pop("image")
    assert fields == expected
    forms = [words[at - 1] for at, word in enumerate(words) if word.startswith(("webhook_url=", "layer="))]
    assert forms == ["--form-string", "--form-string"]


def test_the_command_line_has_every_field() -> None:
    """An option for each, repeated for each value."""
    words = shlex.split(recipe("commandLine"))
    assert words[:3] == ["KERNELSCOPE_API_KEY=YOUR-KEY", "kernelscope", "explain"]
    assert words[3:5] == [HOSTILE, f"{'b' * 8}.png"]
    own = {"methods": "method", "kernels": "kernel"}
    rest = words[5:]
    for name, value in REQUEST.items():
        flag = "--" + own.get(name, name).replace("_", "-")
        given = [rest[at + 1] for at, word in enumerate(rest) if word == flag] if value is not True else []
        assert flag in rest
        if value is not True:
            values = value if isinstance(value, list) else [value]
            assert given == list(map(written, values))
    assert rest[-2:] == ["--url", "http://lab:8000/ks"]
    assert "--top 4" in recipe("commandLine", kernels="top:4")


def test_the_command_line_has_the_options_of_the_program() -> None:
    """Of each field for which `kernelscope explain` has an option, that is the one."""
    command: Any = typer.main.get_command(app)
    options = {param.name: param.opts for param in command.commands["explain"].params}
    words = set(shlex.split(recipe("commandLine"))) | {"--top"}
    for name in {*REQUEST, "top", "url"} & set(options):
        assert words & set(options[name]), name


def test_python_has_every_field() -> None:
    """As Python reads it."""
    calls: dict[str, Any] = {}

    class Client:
        def __init__(self, url: str, key: str) -> None:
            calls["client"] = url, key

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def explain(self, images: list[str], **options: object) -> Self:
            calls.update(images=images, options=options)
            return self

        def wait(self) -> Self:
            return self

        def check(self) -> None:
            calls["checked"] = True

        def save(self, folder: str) -> None:
            calls["folder"] = folder

    text = recipe("python")
    assert text.startswith("from kernelscope import Client\n")
    exec(text.partition("\n")[2], {"Client": Client})  # noqa: S102 - what the page shows is meant to be run
    assert calls["client"] == ("http://lab:8000/ks", "YOUR-KEY")
    assert calls["images"] == [HOSTILE, f"{'b' * 8}.png"]
    assert calls["options"] == REQUEST


def test_the_page_has_a_box_for_every_option() -> None:
    """So that “Change and run again” can carry it."""
    html = (WEB / "index.html").read_text()
    chosen_elsewhere = {"model", "layer", "kernels", "methods"}
    for name in set(ExplainOptions.model_fields) - chosen_elsewhere:
        assert f'id="{name}"' in html
        assert f"{name}: () =>" in (WEB / "request.js").read_text()
