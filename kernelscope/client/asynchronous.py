"""The same client for programs on an event loop: what fetches something is awaited."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from httpx_sse import EventSource
from numpy.typing import NDArray
from PIL import Image
from pydantic import PrivateAttr, computed_field

from kernelscope.client import notebook
from kernelscope.client.errors import ResultsNotRead, ServerUnreachable, refusal
from kernelscope.client.events import Event, ResultEvent, Story
from kernelscope.client.flows import (
    DIRECT,
    PASSING,
    SAVED,
    Call,
    Flow,
    Kernels,
    Operations,
    Patience,
    Pause,
    address,
    headers,
    parsed,
    written,
)
from kernelscope.client.jobs import BaseJob, ResultsOf
from kernelscope.client.pictures import Picture
from kernelscope.client.sync import EVENTS_TIMEOUT
from shared import schemas
from shared.catalogue import ModelInfo
from shared.surveys.forms import SHOWN, KernelPage, LayerKernels, Survey

T = TypeVar("T")


class AsyncResult(schemas.ItemResult):
    """One explanation, as `Result`; its files are awaited."""

    _client: AsyncClient = PrivateAttr()
    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    async def file(self, name: str) -> bytes:
        """The bytes of one of `artifacts`. Raises KeyError."""
        if name not in self._files:
            self._files[name] = await self._client.file(self.artifacts[name])
        return self._files[name]

    async def optimized(self) -> Image.Image:
        """X̂, the delivered PNG: RGB, 8 bits, at the network's input size."""
        image: Image.Image = parsed("optimized.png", await self.file("optimized.png"))
        return image

    async def optimized_array(self) -> NDArray[np.float32]:
        """X̂ before rounding, (3, H, W), in the network's normalised space: 0 is the mean colour."""
        array: NDArray[np.float32] = parsed("optimized.npy", await self.file("optimized.npy"))
        return array

    async def original(self) -> Image.Image:
        """X: the image at the network's input size, RGB, 8 bits."""
        image: Image.Image = parsed("original.png", await self.file("original.png"))
        return image

    async def contrast(self) -> Image.Image:
        """X̂ with its contrast stretched about the mean colour."""
        image: Image.Image = parsed("contrast.png", await self.file("contrast.png"))
        return image

    async def panel(self) -> Image.Image:
        """A figure of all of it."""
        image: Image.Image = parsed("panel.png", await self.file("panel.png"))
        return image

    async def maps(self) -> dict[str, NDArray[Any]]:
        """Feature maps, activations ≥ 0: `before` F_i and `after` F̂_i (h, w); `others` (2,), their maps (2, h, w)."""
        maps: dict[str, NDArray[Any]] = parsed("maps.npz", await self.file("maps.npz"))
        return maps

    async def history(self) -> dict[str, Any]:
        """The loss curve: `columns`, and `rows` of evaluation, L_p, L_s, L_r, L."""
        history: dict[str, Any] = parsed("history.json", await self.file("history.json"))
        return history

    def _repr_html_(self) -> str:
        return notebook.of_result(self, self._files.get("contrast.png"))


class AsyncJob(BaseJob[AsyncResult]):
    """A job as it was when it was last asked for, as `Job`."""

    _client: AsyncClient = PrivateAttr()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def results(self) -> list[AsyncResult]:
        """Those that there are, by their index.

        Raises:
            ResultsNotRead: there are more than 64 items, and neither `wait` nor `read` was awaited.
        """
        if self.known_results is None:
            raise ResultsNotRead(self)
        return self.known_results

    async def read(self) -> list[AsyncResult]:
        """`results`, read where they are not yet."""
        if self.known_results is None:
            self.known_results = await self._client._results(self)  # noqa: SLF001
        return self.known_results

    async def refresh(self) -> Self:
        """As it stands now."""
        return self._become(await self._client.job(self.id))

    async def wait(self, timeout: float | None = None, on_change: Callable[[AsyncJob], None] | None = None) -> Self:  # noqa: ASYNC109 - as of the other client
        """Itself with its results, once it has ended, as `Job.wait`."""
        self._become(await self._client._waited(self, timeout, on_change))  # noqa: SLF001
        await self.read()
        return self

    def events(self) -> AsyncIterator[Event]:
        """What happens to it, as it happens, as `Job.events`."""
        return self._client._events(self)  # noqa: SLF001

    async def cancel(self) -> Self:
        """End it; what is finished of it stays. Raises ServerError (409) where it has ended already."""
        return self._become(await self._client._cancelled(self.id))  # noqa: SLF001

    async def retry(self) -> Self:
        """Run its failed items again, as `Job.retry`."""
        return self._become(await self._client._retried(self.id))  # noqa: SLF001

    async def delete(self) -> None:
        """Remove it with its files, for good."""
        await self._client._deleted(self.id)  # noqa: SLF001

    async def save(self, directory: str | Path, names: Sequence[str] = SAVED) -> list[Path]:
        """Write these files of every result, and `job.json`. Returns the paths."""
        return await self._client._saved(self, directory, names)  # noqa: SLF001

    def bundle(self, path: str | Path) -> Awaitable[Path]:
        """Write everything that there is of it as one ZIP file, as `Job.bundle`."""
        return self._client._streamed(self.links["bundle"], Path(path).expanduser())  # noqa: SLF001

    def _repr_html_(self) -> str:
        shown = (self.known_results or [])[: notebook.MOST_ROWS]
        return notebook.of_job(self, [(result, result._files.get("contrast.png")) for result in shown])  # noqa: SLF001


class AsyncClient:
    """As `Client`, with the same arguments."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout: float = 30.0, patience: float = 10.0
    ) -> None:
        self.url = address(url)
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=headers(key), timeout=timeout, mounts=dict.fromkeys(DIRECT)
        )
        self._do = Operations(self.url, patience, AsyncJob)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def explain(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        kernels: Kernels,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> AsyncJob:
        """`POST /explain`, as `Client.explain`."""
        fields = {"layer": layer, "kernels": kernels, "model": model, **options}
        return self._own(await self._run(self._do.submit("/explain", images, idempotency_key, fields)))

    async def activations(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> AsyncJob:
        """`POST /activations`, as `Client.activations`."""
        fields = {"layer": layer, "model": model, **options}
        return self._own(await self._run(self._do.submit("/activations", images, idempotency_key, fields)))

    async def job(self, job_id: str, wait: int = 0) -> AsyncJob:
        """The job as it stands, or once it has ended, or after so many seconds (at most 60). Raises NotFound."""
        return self._own(await self._run(self._do.job(job_id, wait)))

    async def jobs(
        self, status: str | None = None, model: str | None = None, layer: str | None = None
    ) -> AsyncIterator[schemas.JobSummary]:
        """Your jobs, newest first; pages are fetched as they are needed."""
        filters: dict[str, Any] = {"status": status, "model": model, "layer": layer, "limit": 50}
        while True:
            found, cursor = await self._run(self._do.page(filters))
            for one in found:
                yield one
            if cursor is None:
                return
            filters["cursor"] = cursor

    async def models(self) -> list[ModelInfo]:
        """Every network with its layers, and whether it can be explained now."""
        return await self._run(self._do.models())

    async def model(self, name: str) -> ModelInfo:
        """One network. Raises NotFound."""
        return await self._run(self._do.model(name))

    async def datasets(self) -> list[schemas.DataSet]:
        """Your data sets and those that are everybody's, newest first."""
        return await self._run(self._do.datasets())

    async def create_dataset(self, name: str) -> schemas.DataSet:
        """An empty data set."""
        return await self._run(self._do.create_dataset(name))

    async def dataset_images(self, dataset_id: str) -> list[schemas.DataSetImage]:
        """The images of a data set by name and digest, in the order in which they came. Raises NotFound."""
        return await self._run(self._do.dataset_images(dataset_id))

    async def add_images(self, dataset_id: str, files: Mapping[str, bytes]) -> schemas.AddedImages:
        """Add images to a data set of yours.

        Args:
            files: their bytes by name; all of them together no larger than a body may be (32 MB, unless the server's
                operator has said otherwise).
        """
        return await self._run(self._do.add_images(dataset_id, files))

    async def delete_dataset(self, dataset_id: str) -> None:
        """Delete a data set of yours, with its images. Raises NotFound."""
        await self._run(self._do.delete_dataset(dataset_id))

    async def survey(
        self,
        dataset: str,
        *,
        model: str = "vgg16",
        layers: Sequence[str] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> AsyncJob:
        """`POST /surveys`: what every kernel of some layers responds to in the images of a data set.

        Args:
            dataset: its id.
            layers: all that the weights reach, unless given.
            idempotency_key: the same for what shall be one survey; one of its own unless given.
            options: what the API takes beside (`webhook_url`).

        Returns:
            At once, its job; the job's id is the survey's too.
        """
        fields = {"dataset": dataset, "model": model, "layers": list(layers) if layers else None, **options}
        return self._own(await self._run(self._do.survey(idempotency_key, fields)))

    async def surveys(self) -> list[Survey]:
        """Your surveys and those that are everybody's, newest first."""
        return await self._run(self._do.surveys())

    async def get_survey(self, survey_id: str) -> Survey:
        """One survey, as far as it is. Raises NotFound."""
        return await self._run(self._do.get_survey(survey_id))

    async def delete_survey(self, survey_id: str) -> None:
        """Delete a survey of yours. Raises NotFound."""
        await self._run(self._do.delete_survey(survey_id))

    async def survey_csv(self, survey_id: str) -> str:
        """A table of all kernels of all its layers. Raises NotFound."""
        return await self._run(self._do.survey_csv(survey_id))

    async def layer_kernels(self, network: str, layer: str, survey: str | None = None) -> LayerKernels:
        """All kernels of a layer, in their order, as a survey knows them. Raises NotFound.

        Args:
            survey: its id; the newest one that has the layer unless given.
        """
        return await self._run(self._do.layer_kernels(network, layer, survey))

    async def kernel(self, network: str, layer: str, kernel: int, survey: str | None = None) -> KernelPage:
        """What is known of one kernel, with the URLs of its crops and X̂ for `file`; `survey` as of `layer_kernels`."""
        return await self._run(self._do.kernel(network, layer, kernel, survey))

    async def explain_kernels(
        self,
        survey_id: str,
        layer: str,
        kernels: Iterable[int],
        images: int = SHOWN,
        effort: str = "quick",
        *,
        rivals: bool = False,
    ) -> list[AsyncJob]:
        """`POST /surveys/{id}/explanations`: X̂ of each kernel's top images; the same again is the same jobs.

        Args:
            images: how many of the top images.
            rivals: also explain the two most active other kernels of these images, for `discrimination`.

        Returns:
            A job for each kernel; with rivals two.
        """
        fields = {
            "layer": layer,
            "kernels": list(map(int, kernels)),
            "images": images,
            "effort": effort,
            "rivals": rivals,
        }
        return [self._own(job) for job in await self._run(self._do.explain_kernels(survey_id, fields))]

    async def file(self, path: str) -> bytes:
        """A file by the URL path that a result or a job's `links` name."""
        return await self._run(self._do.file(path))

    async def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                found: T = end.value
                return found
            answer = await self._done(step)

    async def _done(self, step: Call | Pause) -> httpx.Response | httpx.TransportError | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(step.method, step.path, **step.options)
        except httpx.TransportError as error:
            return error

    def _own(self, job: AsyncJob) -> AsyncJob:
        job._client = self  # noqa: SLF001
        self._own_all(job.known_results or [])
        return job

    def _own_all(self, results: list[AsyncResult]) -> list[AsyncResult]:
        for result in results:
            result._client = self  # noqa: SLF001
        return results

    async def _results(self, job: AsyncJob) -> list[AsyncResult]:
        return self._own_all(await self._run(self._do.results(job, ResultsOf[AsyncResult], sys.maxsize)))

    async def _waited(
        self, job: AsyncJob, seconds: float | None, on_change: Callable[[AsyncJob], None] | None
    ) -> AsyncJob:
        told = (lambda found: on_change(self._own(found))) if on_change else None
        return self._own(await self._run(self._do.wait(job, seconds, told)))

    async def _cancelled(self, job_id: str) -> AsyncJob:
        return self._own(await self._run(self._do.cancel(job_id)))

    async def _retried(self, job_id: str) -> AsyncJob:
        return self._own(await self._run(self._do.retry(job_id)))

    async def _deleted(self, job_id: str) -> None:
        await self._run(self._do.delete(job_id))

    async def _saved(self, job: AsyncJob, directory: str | Path, names: Sequence[str]) -> list[Path]:
        await job.read()
        return await self._run(self._do.save(job, directory, names))

    async def _streamed(self, path: str, file: Path) -> Path:
        try:
            async with self._http.stream("GET", self._do.at(path)) as response:
                if response.is_error:
                    await response.aread()
                    raise refusal(response)
                with written(file) as target:
                    async for part in response.aiter_bytes():
                        target.write(part)
        except httpx.TransportError as error:
            raise ServerUnreachable(self.url, error) from error
        return file

    async def _events(self, job: AsyncJob) -> AsyncIterator[Event]:
        story, patience = Story(AsyncResult), Patience(self._do.away)
        while not story.over:
            error: Exception = EOFError("the stream ended early")
            try:
                async for event in self._connected(job, story):
                    patience = Patience(self._do.away)
                    yield event
            except httpx.TransportError as lost:
                error = lost
            if story.over:
                return
            pause = patience.next()
            if pause is None:
                raise ServerUnreachable(self.url, error)
            await asyncio.sleep(pause.seconds)

    async def _connected(self, job: AsyncJob, story: Story) -> AsyncIterator[Event]:
        """The events of one connection."""
        async with self._http.stream(
            "GET", self._do.at(job.links["events"]), headers=story.headers, timeout=EVENTS_TIMEOUT
        ) as response:
            if response.status_code in PASSING:
                return
            if response.is_error:
                await response.aread()
                raise refusal(response)
            if response.status_code == 204:
                story.over = True
                return
            async for sent in EventSource(response).aiter_sse():
                if event := story.told(sent):
                    if isinstance(event, ResultEvent) and isinstance(event.result, AsyncResult):
                        event.result._client = self  # noqa: SLF001
                    yield event
