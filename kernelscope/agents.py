"""`kernelscope mcp`: a server's tools for language models, by the Model Context Protocol.

Needs the extra `mcp`, which nothing else of the program does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from kernelscope.answers import MOST_SHOWN, Shown, explained, picture, png, text
from kernelscope.client import AsyncClient, AsyncJob, Client, ClientError, NotFound, ProgressEvent
from kernelscope.datasets import PATIENCE, files_in, sent
from kernelscope.surveys import in_words, named
from shared.schemas import ActiveKernel, DataSet, Method, Status, Survey
from shared.version import VERSION

INSTRUCTIONS = (
    "Kernelscope shows what a convolution kernel of a trained CNN responds to. On one image: rank_kernels finds the "
    "kernels of a layer that are active, explain makes X̂ of them, the emptiest picture that keeps the kernel's feature "
    "map and silences all others. Over many images: survey runs all images of a data set through a network once, and "
    "describe_kernel reports what a kernel responds to in them. list_models lists the networks and their layers."
)

ImageArgument = Annotated[
    str,
    Field(description="path of a PNG, JPEG or WebP file on this machine, or its bytes in base64 or as a data: URI"),
]
Model = Annotated[str, Field(description="name of a network, see list_models")]
Layer = Annotated[str, Field(description="name of a layer, such as conv3_3, see list_models")]
SurveyId = Annotated[str | None, Field(description="id of a survey")]
Kernels = Annotated[list[int] | str, Field(description='numbers from 0, or "top:N" for the N most active ones')]


class KnownModel(BaseModel):
    """A network, and what can be explained of it."""

    name: str
    title: str
    available: bool | None = Field(description="whether it can be explained now; null: no worker is connected")
    reason: str
    layers: dict[str, int] = Field(description="name → number of kernels, of the layers that can be explained")


class Surveyed(BaseModel):
    """How far a survey is."""

    survey: str
    status: Status
    images: int
    surveyed: int = Field(description="images that have been surveyed so far")
    layers: list[str]
    seconds_left: float | None
    next: str = Field(description="what to do next")


@dataclass(frozen=True)
class Tools:
    """The tools for one server.

    Args:
        url, key: see the client.
    """

    url: str | None
    key: str | None

    async def list_models(self) -> list[KnownModel]:
        """List the networks that can be explained, and their layers."""
        async with self._client() as client:
            return [
                KnownModel(
                    **one.model_dump(include={"name", "title", "available", "reason"}),
                    layers={layer.name: layer.kernels for layer in one.layers if layer.available is not False},
                )
                for one in await client.models()
            ]

    async def rank_kernels(
        self,
        image: ImageArgument,
        layer: Layer,
        context: Context,
        model: Model = "vgg16",
        top: Annotated[int, Field(ge=1)] = 20,
    ) -> list[ActiveKernel]:
        """Rank the kernels of a layer by how active they are on an image, the most active first."""
        async with self._client() as client:
            job = await client.activations(picture(image), layer=layer, model=model)
            await _ended(job, context)
            return (job.check().results[0].ranking or [])[:top]

    async def explain(  # noqa: PLR0913 - the arguments of a tool
        self,
        image: ImageArgument,
        layer: Layer,
        kernels: Kernels,
        *,
        context: Context,
        model: Model = "vgg16",
        method: Method = "evidence",
        effort: Annotated[
            Literal["quick", "standard", "thorough"], Field(description="how long the solver tries")
        ] = "quick",
        figure: Annotated[
            bool, Field(description="show a figure of X, X̂ and maps before and after for each kernel, instead of X̂")
        ] = False,
    ) -> Shown:
        """Make X̂ of kernels on an image: what of the image they respond to, with numbers that say how reliable it is.

        The numbers are measured by feeding the delivered picture through the network. ssim: how well the kernel's map
        is kept, 1 is best. leakage: share of the other kernels' activation that is left. invention: activation below
        the layer that X̂ causes and the image does not, over the image's.
        """
        async with self._client() as client:
            chosen = {"kernels": kernels, "methods": method, "effort": effort}
            job = await client.explain(picture(image), layer=layer, model=model, **chosen)  # type: ignore[arg-type]
            await _ended(job, context)
            return await explained(job if job.results else job.check(), figure=figure)

    async def describe_kernel(
        self,
        network: Model,
        layer: Layer,
        kernel: Annotated[int, Field(ge=0)],
        survey: SurveyId = None,
        images: Annotated[int, Field(ge=0, le=MOST_SHOWN, description="top images to show")] = 4,
    ) -> Shown:
        """Report what a survey found about a kernel: a sentence, numbers, parts of its top images, and X̂ of them.

        Without a survey's id, the newest survey that includes the layer is used.
        """
        async with self._client() as client:
            try:
                page = await client.kernel(network, layer, kernel, survey)
            except NotFound as error:
                more = "; the tool `survey` starts one" if error.problem.type.endswith("survey-not-found") else ""
                raise ToolError(f"{error}{more}") from error
            urls = {"__all__": {"crop", "picture", "whole"}}
            numbers = page.model_dump_json(exclude={"surveys": True, "top": urls, "similar": urls})
            shown: Shown = [text(in_words(page)), text(numbers)]
            for one in page.top[:images]:
                shown += [text(f"the part of {one.name} that the kernel sees"), png(await client.file(one.crop))]
                if one.picture:
                    shown += [text(f"the same part of X̂ of {one.name}"), png(await client.file(one.picture))]
            return shown

    async def survey(  # noqa: PLR0913 - the arguments of a tool
        self,
        *,
        context: Context,
        dataset: Annotated[str | None, Field(description="name or id of a data set on the server")] = None,
        folder: Annotated[
            str | None, Field(description="folder of images on this machine, which are uploaded as a data set first")
        ] = None,
        model: Model = "vgg16",
        layers: Annotated[list[str] | None, Field(description="default: all that can be surveyed")] = None,
        survey: Annotated[str | None, Field(description="id of a survey to wait for, instead of all else")] = None,
        wait_seconds: Annotated[
            float, Field(ge=0, le=3600, description="how long to wait; the survey continues on the server")
        ] = 50,
    ) -> Surveyed:
        """Survey every kernel of a network on a data set, or wait for one that was started before.

        Give a data set on the server, a folder of images, or the id of a survey. If it is not finished in time, it
        continues; call this tool again with its id.
        """
        async with self._client() as client:
            if not survey:
                chosen = await self._dataset(client, dataset, folder, context)
                survey = (await client.survey(chosen.id, model=model, layers=layers)).id
            found, job = await client.get_survey(survey), None
            if not found.status.terminal:
                job = await client.job(survey)
                with anyio.move_on_after(wait_seconds):
                    await _report(job, context)
                await job.refresh()
                found = await client.get_survey(survey)
            return Surveyed(
                survey=found.id,
                **found.model_dump(include={"status", "images", "surveyed", "layers"}),
                seconds_left=job.progress.seconds_left if job else None,
                next=_next(found, job),
            )

    async def _dataset(self, client: AsyncClient, name: str | None, folder: str | None, context: Context) -> DataSet:
        if folder:
            await context.report_progress(0, 1, f"uploading the images of {folder}")
            return await anyio.to_thread.run_sync(self._filled, folder, name)
        if not name:
            raise ToolError("give dataset, folder or survey")
        return named(await client.datasets(), name)

    def _filled(self, path: str, name: str | None) -> DataSet:
        """The data set of this name, with the folder's images in it; what was sent before is not sent again."""
        folder = Path(path).expanduser()
        files = list(files_in([folder])) if folder.is_dir() else []
        if not files:
            raise ToolError(f"{folder} is not a folder of images, or of archives of images, on this machine")
        name = name or folder.resolve().name
        with Client(self.url, self.key, patience=PATIENCE) as client:
            mine = [one for one in client.datasets() if one.mine and one.name == name]
            return sent(client, mine[0] if mine else client.create_dataset(name), files)[0]

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncClient]:
        """A client, whose errors become answers that the model can read."""
        async with AsyncClient(self.url, self.key, patience=PATIENCE) as client:
            try:
                yield client
            except (ClientError, OSError, ValueError) as error:
                raise ToolError(str(error)) from error


def served(url: str | None, key: str | None) -> MCPServer:
    """The tools of a server, for any transport."""
    tools = Tools(url, key)
    server = MCPServer("kernelscope", version=VERSION, instructions=INSTRUCTIONS, log_level="WARNING")
    for looks in (tools.list_models, tools.describe_kernel):
        server.add_tool(looks, annotations=ToolAnnotations(read_only_hint=True))
    for makes in (tools.rank_kernels, tools.explain, tools.survey):
        server.add_tool(makes, annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))
    return server


def serve(url: str | None, key: str | None) -> None:
    """Serve the tools on stdin and stdout until they are closed."""
    served(url, key).run("stdio")


def _next(found: Survey, job: AsyncJob | None) -> str:
    if job and job.error:
        return f"{job.error.title}: {job.error.detail}"
    if not found.status.terminal:
        return f"call survey with survey={found.id!r} to wait for it"
    return f"describe_kernel reports its results, with survey={found.id!r}"


async def _report(job: AsyncJob, context: Context) -> None:
    """Report a job's progress until it has ended."""
    if job.status.terminal:
        return
    async for event in job.events():
        if isinstance(event, ProgressEvent):
            of = "?" if event.total is None else event.total
            await context.report_progress(event.fraction, 1, f"{event.completed} of {of} parts are done")


async def _ended(job: AsyncJob, context: Context) -> None:
    """The job with its results; it is cancelled where the call is."""
    try:
        await _report(job, context)
        await job.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True), suppress(ClientError):
            await job.cancel()
        raise
