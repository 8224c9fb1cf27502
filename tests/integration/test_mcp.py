"""The tools for language models, by the protocol's own client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from kernelscope.agents import served
from shared.schemas import Status
from tests.conftest import noise, png
from tests.local import local
from tests.surveyed import DATASET, EXPLAINING, HOSTILE, KERNELS, SILENT, SURVEY, SurveyServer

PICTURE = b64encode(png(noise(8, 8))).decode()
TOOLS = {"list_models", "rank_kernels", "explain", "describe_kernel", "survey"}
WHERE: dict[str, Any] = {"image": PICTURE, "model": "vgg_mini", "layer": "conv2_2"}


@pytest.fixture
def answers() -> SurveyServer:
    """What the server says."""
    return SurveyServer(explained=True)


@pytest.fixture
def url(answers: SurveyServer) -> Iterator[str]:
    """Where it is."""
    with local(answers) as url:
        yield url


def ask(url: str, name: str, progress: ProgressFnT | None = None, **arguments: Any) -> CallToolResult:
    """One call of a tool."""

    async def asked() -> CallToolResult:
        async with Client(served(url, None)) as client:
            return await client.call_tool(name, arguments, progress_callback=progress)

    return asyncio.run(asked())


def texts(found: CallToolResult) -> list[str]:
    """The text of an answer."""
    return [one.text for one in found.content if isinstance(one, TextContent)]


def pictures(found: CallToolResult) -> list[Image.Image]:
    """What is shown."""
    shown = [one for one in found.content if isinstance(one, ImageContent)]
    assert {one.mime_type for one in shown} <= {"image/png"}
    return [Image.open(BytesIO(b64decode(one.data))) for one in shown]


def test_every_tool_says_what_it_takes(url: str) -> None:
    """In words, with what each argument is."""

    async def listed() -> None:
        async with Client(served(url, None)) as client:
            tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == TOOLS
        for tool in tools:
            assert tool.description
            assert "context" not in tool.input_schema["properties"]
            assert {"title", "type"} <= tool.input_schema.keys()

    asyncio.run(listed())


def test_networks_are_listed(url: str) -> None:
    """With layers and how many kernels they have."""
    found = ask(url, "list_models").structured_content
    assert found
    assert found["result"][0]["layers"] == {"conv2_2": KERNELS}


def test_kernels_are_ranked_by_an_image(answers: SurveyServer, url: str, tmp_path: Path) -> None:
    """By its path, its bytes, a data: URI; anything else is refused."""
    file = tmp_path / "photo.png"
    file.write_bytes(b64decode(PICTURE))
    for image in (PICTURE, str(file), f"data:image/png;base64,{PICTURE}"):
        found = ask(url, "rank_kernels", **{**WHERE, "image": image, "top": 3})
        assert found.structured_content
        assert [one["kernel"] for one in found.structured_content["result"]] == [0, 1, 2]
        assert b64decode(PICTURE) in [one for one in answers.requests if one.method == "POST"][-1].content
    for image in ("nowhere/photo.png", "x!" * 3000, "\0"):
        wrong = ask(url, "rank_kernels", **{**WHERE, "image": image})
        assert wrong.is_error
        assert "neither a file on this machine nor base64" in texts(wrong)[0]


def test_an_explanation_is_pictures_and_numbers(url: str) -> None:
    """The image first; each kernel's numbers before its picture."""
    found = ask(url, "explain", kernels="top:1", **WHERE)
    assert not found.is_error, texts(found)
    assert len(pictures(found)) == 2
    assert "kernel 3 of conv2_2 of vgg_mini, by suppression: ssim 0.980, leakage 0.200" in texts(found)[1]
    assert len(pictures(ask(url, "explain", kernels=[3], figure=True, **WHERE))) == 1


def test_a_refusal_of_the_server_is_passed_on(url: str) -> None:
    """Also a server that is not there."""
    found = ask(url, "explain", kernels=[1], **{**WHERE, "layer": "conv9_9"})
    assert found.is_error
    assert "layer conv9_9 does not exist; layers: conv1_1, conv2_2" in texts(found)[0]
    found = ask(url, "describe_kernel", network="vgg_mini", layer="conv1_1", kernel=1)
    assert found.is_error
    assert "the tool `survey` starts one" in texts(found)[0]


def test_a_kernel_is_described(url: str) -> None:
    """A sentence, the numbers, what it sees and X̂, as PNGs that are large enough to see."""
    found = ask(url, "describe_kernel", network="vgg_mini", layer="conv2_2", kernel=3)
    assert not found.is_error, texts(found)
    said = texts(found)
    assert said[0].startswith("Kernel 3 of conv2_2 of vgg_mini is active in 50.0% of the 1,000 images")
    assert "consistency 0.62 ± 0.03" in said[0]
    assert f"the part of 0 {HOSTILE} that the kernel sees" in said
    assert {picture.size for picture in pictures(found)} == {(128, 128)}
    assert len(pictures(found)) == 3
    assert pictures(ask(url, "describe_kernel", network="vgg_mini", layer="conv2_2", kernel=SILENT)) == []


def test_a_survey_is_started_and_waited_for(answers: SurveyServer, url: str, tmp_path: Path) -> None:
    """With its progress; when the wait is over it continues, and can be waited for again; also of a folder."""
    answers.status = Status.RUNNING
    reports: list[Any] = []

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total, message))

    found = ask(url, "survey", reported, dataset="birds", model="vgg_mini", wait_seconds=1)
    assert found.structured_content
    assert found.structured_content["status"] == "running"
    assert f"survey={SURVEY!r} to wait" in found.structured_content["next"]
    assert reports[0] == (0.5, 1, "1 of 1 parts are done")
    answers.status = Status.SUCCEEDED
    found = ask(url, "survey", survey=SURVEY)
    assert found.structured_content
    assert found.structured_content["surveyed"] == 1000
    refused: list[tuple[dict[str, Any], str]] = [
        ({"dataset": "cats"}, "there are: birds"),
        ({}, "give dataset, folder or survey"),
        ({"folder": str(tmp_path)}, "is not a folder of images"),
    ]
    for arguments, said in refused:
        wrong = ask(url, "survey", **arguments)
        assert wrong.is_error
        assert said in texts(wrong)[0]


def test_a_cancelled_call_cancels_its_job(answers: SurveyServer, url: str) -> None:
    """A job that is not waited for is cancelled."""

    async def story() -> None:
        async with Client(served(url, None)) as client:
            with anyio.move_on_after(1):
                await client.call_tool("explain", {"kernels": [1], **WHERE})
            await asyncio.sleep(1)

    answers.status = Status.RUNNING
    asyncio.run(story())
    assert [one.url.path for one in answers.requests][-1] == f"/jobs/{EXPLAINING}/cancel"


def test_the_command_speaks_the_protocol(url: str) -> None:
    """On stdin and stdout, the server by the environment."""
    environment = {**os.environ, "KERNELSCOPE_URL": url}
    command = StdioServerParameters(command=sys.executable, args=["-m", "kernelscope", "mcp"], env=environment)

    async def story() -> CallToolResult:
        async with Client(command) as client:
            return await client.call_tool("survey", {"dataset": DATASET})

    found = asyncio.run(story())
    assert found.structured_content
    assert found.structured_content["survey"] == SURVEY


def test_without_the_extra_the_command_says_how_to_have_it() -> None:
    """And nothing else of the program needs it."""
    code = "import sys; sys.modules['mcp'] = None; from kernelscope import cli; cli.main()"
    ran = subprocess.run([sys.executable, "-c", code, "mcp"], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert "pip install 'kernelscope[mcp]'" in ran.stderr
    assert "Traceback" not in ran.stderr
