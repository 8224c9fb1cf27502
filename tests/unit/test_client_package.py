"""The client as a package: its types, the generated code, and the wheel `kernelscope-client`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from packaging.requirements import Requirement

from kernelscope.client import ActivationsOptions, ExplainOptions, Unauthorized, generate
from shared.errors import Unauthorized as NoKey
from shared.schemas import ActivationsBody, ExplainBody
from tests.unit.client_server import Script, client, problem

ROOT = Path(__file__).parents[2]
NAMED = {"images", "layer", "kernels", "model"}  # arguments that are not among the options
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)

SCRIPT = """
from collections.abc import Iterator
from typing import assert_type

import numpy as np
from PIL import Image

from kernelscope import AsyncClient, Client
from kernelscope.client import AsyncResult, Explanation, Job, ModelInfo, ProgressEvent, Result, ResultEvent, ServerError


def sync(client: Client) -> Iterator[float | None]:
    job = client.explain(
        ["a.png", np.zeros((8, 8))], layer="conv1_1", kernels=np.arange(3), methods=["lrp"], beta=np.linspace(0, 1, 3)
    )
    assert_type(job, Job)
    job.wait(10, on_change=lambda seen: print(seen.progress.fraction)).check()
    for result in job.explanations:
        yield result.metrics.ssim
        assert_type(result.kernel, int)
        assert_type(result.losses.total, float)
        assert_type(result.optimized, Image.Image)
    for one in job.results:
        if isinstance(one, Explanation):
            print(one.metrics.leakage, one.maps["after"].max())
        elif one.error:
            print(one.error.detail)
    for event in job.events():
        if isinstance(event, ResultEvent):
            assert_type(event.result, Result)
        elif isinstance(event, ProgressEvent):
            print(event.fraction)
    print(client.activations("a.png", layer="conv1_1").wait().rankings[0][0].kernel)
    assert_type(client.models(), list[ModelInfo])
    try:
        client.explain("a.png", layer="conv1_1", kernels=1, effort="hard")  # type: ignore[arg-type]
        client.explain("a.png", layer="conv1_1", kernels=1, efort="quick")  # type: ignore[call-arg]
    except ServerError as error:
        print(error.problem.title, error.retry_after)


async def asynchronous(client: AsyncClient) -> None:
    job = await client.explain("a.png", layer="conv1_1", kernels="top:3", target_ssim=0.9, only_remove=True)
    async for event in job.events():
        if isinstance(event, ResultEvent):
            assert_type(event.result, AsyncResult)
    for result in (await job.wait()).explanations:
        print(result.metrics.ssim, (await result.optimized()).size)
    await job.bundle("all.zip")
"""


def test_the_synchronous_client_is_generated_from_the_asynchronous_one() -> None:
    """`python -m kernelscope.client.generate` was run after the last change."""
    files = generate.generated()
    assert {path: path.read_text() for path in generate.TARGET.glob("*.py")} == files
    assert not re.search(r"\b(async|await|asyncio|Async\w+)\b", "".join(files.values()))


def test_the_generator_has_no_block_that_the_source_lacks() -> None:
    """A block that was changed in one place only would stay asynchronous."""
    source = "".join(path.read_text() for path in generate.SOURCE.glob("*.py"))
    assert [block for block in generate.DIFFERENCES if source.count(block) != 1] == []


def literals(annotation: Any) -> Iterator[Any]:
    """The values of every Literal in a type."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from literals(part)


@pytest.mark.parametrize(("options", "body"), [(ExplainOptions, ExplainBody), (ActivationsOptions, ActivationsBody)])
def test_options_are_the_fields_of_the_request(options: type, body: type[ExplainBody | ActivationsBody]) -> None:
    """Each by its JSON name, with the same values to choose from; each may be None, which is not sent."""
    hints = get_type_hints(options)
    assert hints.keys() == body.model_fields.keys() - NAMED
    for name, hint in hints.items():
        assert set(literals(hint)) == set(literals(body.model_fields[name].annotation)), name
        assert get_origin(hint) in {Union, types.UnionType}, name
        assert type(None) in get_args(hint), name


def test_every_field_of_a_request_is_sent() -> None:
    """By its name."""
    script = Script(problem(NoKey("no key")))
    options: dict[str, Any] = dict.fromkeys(get_type_hints(ExplainOptions), 1)
    with client(script) as one, pytest.raises(Unauthorized):
        one.explain(b"x", layer="conv1_1", kernels=1, **options)
    sent = re.findall(rb'form-data; name="(\w+)"', script.requests[0].read())
    assert {name.decode() for name in sent} == {*ExplainBody.model_fields} - {"images"} | {"image"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`kernelscope-client`, built."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", str(folder), str(ROOT / "deploy/client")], check=True)
    (file,) = folder.glob("kernelscope_client-*.whl")
    return file


def required(name: str) -> Iterator[str]:
    """What a distribution needs, without extras."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment with the wheel and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    (metadata,) = site.glob("kernelscope_client-*.dist-info/METADATA")
    direct = re.findall(r"^Requires-Dist: ([\w-]+)", metadata.read_text(), re.MULTILINE)
    assert len(direct) <= 6, direct
    found, unread = set[str](), list(direct)
    while unread:
        if (name := unread.pop()) not in found:
            found.add(name)
            unread += required(name)
    for name in found:
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or [] if file.parts[0] not in {"..", "__pycache__"}}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    return folder / "bin" / "python"


def alone() -> dict[str, str]:
    """The environment without this project."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MYPYPATH"}}


@pytest.mark.slow
def test_the_wheel_is_small_and_needs_no_server(wheel: Path, environment: Path, tmp_path: Path) -> None:
    """Both clients work in an environment of six packages and their dependencies."""
    assert wheel.stat().st_size <= 100_000
    code = """
import asyncio, importlib.util, sys
from kernelscope import AsyncClient, Client
import kernelscope.client
for name in ("shared", "celery", "redis", "obstore", "torch", "fastapi", "typer"):
    assert importlib.util.find_spec(name) is None, name
assert kernelscope.client.Client is Client
for call in (lambda: Client("http://127.0.0.1:9", patience=0).models(),
             lambda: asyncio.run(AsyncClient("http://127.0.0.1:9", patience=0).models())):
    try:
        call()
    except kernelscope.client.ServerUnreachable:
        print("unreachable")
"""
    ran = subprocess.run(
        [environment, "-c", code], cwd=tmp_path, env=alone(), capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("unreachable\nunreachable\n", "")


def test_programs_that_use_the_client_are_type_checked(environment: Path, tmp_path: Path) -> None:
    """By `mypy --strict`, with nothing but the wheel installed; also the examples of docs/client.md."""
    examples = EXAMPLE.findall((ROOT / "docs" / "client.md").read_text())
    assert examples
    for number, text in enumerate([SCRIPT, *examples]):
        (tmp_path / f"script{number}.py").write_text(text)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(environment)]
    files = sorted(path.name for path in tmp_path.glob("*.py"))
    ran = subprocess.run([*mypy, *files], cwd=tmp_path, env=alone(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
