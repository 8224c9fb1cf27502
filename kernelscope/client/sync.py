"""The client for programs and notebooks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from kernelscope.client.errors import ServerUnreachable, refusal
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
from shared import schemas
from shared.catalogue import ModelInfo
from shared.surveys.forms import SHOWN, KernelPage, LayerKernels, Survey

T = TypeVar("T")

EVENTS_TIMEOUT = httpx.Timeout(10.0, read=45.0)  # the server says something every 15 s


class Result(schemas.ItemResult):
    """One explanation: the numbers of the contract, and its files, fetched when they are looked at and then kept."""

    _client: Client = PrivateAttr()
    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    def file(self, name: str) -> bytes:
        """The bytes of one of `artifacts`.

        Raises:
            KeyError: the result has no such file; a failed one has none.
        """
        if name not in self._files:
            self._files[name] = self._client.file(self.artifacts[name])
        return self._files[name]

    @property
    def optimized(self) -> Image.Image:
        """X̂, the delivered PNG: RGB, 8 bits, at the network's input size."""
        image: Image.Image = parsed("optimized.png", self.file("optimized.png"))
        return image

    @property
    def optimized_array(self) -> NDArray[np.float32]:
        """X̂ before rounding, (3, H, W), in the network's normalised space: 0 is the mean colour."""
        array: NDArray[np.float32] = parsed("optimized.npy", self.file("optimized.npy"))
        return array

    @property
    def original(self) -> Image.Image:
        """X: the image at the network's input size, RGB, 8 bits."""
        image: Image.Image = parsed("original.png", self.file("original.png"))
        return image

    @property
    def contrast(self) -> Image.Image:
        """X̂ with its contrast stretched about the mean colour."""
        image: Image.Image = parsed("contrast.png", self.file("contrast.png"))
        return image

    @property
    def panel(self) -> Image.Image:
        """A figure of all of it: X, X̂, the maps before and after, the loudest other kernels, the numbers."""
        image: Image.Image = parsed("panel.png", self.file("panel.png"))
        return image

    @property
    def maps(self) -> dict[str, NDArray[Any]]:
        """Feature maps, activations ≥ 0: `before` F_i and `after` F̂_i (h, w); `others` (2,), their maps (2, h, w)."""
        maps: dict[str, NDArray[Any]] = parsed("maps.npz", self.file("maps.npz"))
        return maps

    @property
    def history(self) -> dict[str, Any]:
        """The loss curve: `columns`, and `rows` of evaluation, L_p, L_s, L_r, L."""
        history: dict[str, Any] = parsed("history.json", self.file("history.json"))
        return history

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's own
        return np.array(self.optimized_array, dtype=dtype, copy=copy if copy is not None else True)

    def _repr_html_(self) -> str:
        return notebook.of_result(self, self._picture())

    def _picture(self) -> bytes | None:
        return self.file("contrast.png") if "contrast.png" in self.artifacts else None


class Job(BaseJob[Result]):
    """A job as it was when it was last asked for; `refresh` and `wait` bring it up to date."""

    _client: Client = PrivateAttr()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def results(self) -> list[Result]:
        """Those that there are, by their index; of more than 64 items they are read when they are first looked at."""
        if self.known_results is None:
            self.known_results = self._client._results(self)  # noqa: SLF001
        return self.known_results

    def refresh(self) -> Self:
        """As it stands now."""
        return self._become(self._client.job(self.id))

    def wait(self, timeout: float | None = None, on_change: Callable[[Job], None] | None = None) -> Self:
        """Itself, once it has ended, whichever way; `check` tells how. A restart of the server is sat out.

        Args:
            timeout: seconds.
            on_change: called four times a second with the job as it stands.

        Raises:
            WaitTimeout, ServerUnreachable, ServerError.
        """
        return self._become(self._client._waited(self, timeout, on_change))  # noqa: SLF001

    def events(self) -> Iterator[Event]:
        """What happens to it, as it happens, from its beginning to its end; lost connections are made again."""
        return self._client._events(self)  # noqa: SLF001

    def cancel(self) -> Self:
        """End it; what is finished of it stays. Raises ServerError (409) where it has ended already."""
        return self._become(self._client._cancelled(self.id))  # noqa: SLF001

    def retry(self) -> Self:
        """Run its failed items again; what has succeeded stays. Raises ServerError (409): none failed, or it runs."""
        return self._become(self._client._retried(self.id))  # noqa: SLF001

    def delete(self) -> None:
        """Remove it with its files, for good."""
        self._client._deleted(self.id)  # noqa: SLF001

    def save(self, directory: str | Path, names: Sequence[str] = SAVED) -> list[Path]:
        """Write these files of every result, named by layer and kernel, and `job.json`. Returns the paths."""
        return self._client._saved(self, directory, names)  # noqa: SLF001

    def bundle(self, path: str | Path) -> Path:
        """Write everything that there is of it as one ZIP file; a file that was there stays where that fails."""
        return self._client._streamed(self.links["bundle"], Path(path).expanduser())  # noqa: SLF001

    def _repr_html_(self) -> str:
        known = self.known_results
        shown = self._client._results(self, notebook.MOST_ROWS) if known is None else known[: notebook.MOST_ROWS]  # noqa: SLF001
        return notebook.of_job(self, [(result, result._picture()) for result in shown])  # noqa: SLF001


class Client:
    """Submits jobs, follows them, fetches what they made. Safe to use from several threads.

    Args:
        url: of the server; KERNELSCOPE_URL, or this machine's port 8000, unless given.
        key: an API key, where the server needs one; KERNELSCOPE_API_KEY unless given.
        timeout: seconds that one answer may take.
        patience: seconds for which a request is sent again while the server is away (connection, 502-504) or has too
            much to do (429): no request makes two jobs. 0: never. A job is waited for at least a minute longer.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout: float = 30.0, patience: float = 10.0
    ) -> None:
        self.url = address(url)
        self._http = httpx.Client(base_url=self.url, headers=headers(key), timeout=timeout, mounts=DIRECT)
        self._do = Operations(self.url, patience, Job)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def explain(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        kernels: Kernels,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """`POST /explain`: returns at once, with the job.

        Args:
            images: one or up to 16: a path, the bytes of a file, a Pillow image, an array (H, W), (H, W, 1), (H, W, 3)
                or (H, W, 4) of uint8 or of floats from 0 to 1.
            layer: `conv3_3`.
            kernels: zero-based indices, also as a range or an array, or "top:N" for the N most active.
            idempotency_key: the same for what shall be one job; one of its own unless given.
            options: what the API takes beside (`methods`, `alpha`, `beta`, `effort`, `target_ssim`, `only_remove`, …).

        Raises:
            ServerUnreachable, ServerError: 422 with the field that is wrong, and what would be right.
        """
        fields = {"layer": layer, "kernels": kernels, "model": model, **options}
        return self._own(self._run(self._do.submit("/explain", images, idempotency_key, fields)))

    def activations(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """`POST /activations`: a quick job whose results have a `ranking` of the layer's kernels."""
        fields = {"layer": layer, "model": model, **options}
        return self._own(self._run(self._do.submit("/activations", images, idempotency_key, fields)))

    def job(self, job_id: str, wait: int = 0) -> Job:
        """The job as it stands, or once it has ended, or after so many seconds (at most 60). Raises NotFound."""
        return self._own(self._run(self._do.job(job_id, wait)))

    def jobs(
        self, status: str | None = None, model: str | None = None, layer: str | None = None
    ) -> Iterator[schemas.JobSummary]:
        """Your jobs, newest first; pages are fetched as they are needed."""
        filters: dict[str, Any] = {"status": status, "model": model, "layer": layer, "limit": 50}
        while True:
            found, cursor = self._run(self._do.page(filters))
            yield from found
            if cursor is None:
                return
            filters["cursor"] = cursor

    def models(self) -> list[ModelInfo]:
        """Every network with its layers, and whether it can be explained now."""
        return self._run(self._do.models())

    def model(self, name: str) -> ModelInfo:
        """One network. Raises NotFound."""
        return self._run(self._do.model(name))

    def datasets(self) -> list[schemas.DataSet]:
        """Your data sets and those that are everybody's, newest first."""
        return self._run(self._do.datasets())

    def create_dataset(self, name: str) -> schemas.DataSet:
        """An empty data set."""
        return self._run(self._do.create_dataset(name))

    def dataset_images(self, dataset_id: str) -> list[schemas.DataSetImage]:
        """The images of a data set by name and digest, in the order in which they came. Raises NotFound."""
        return self._run(self._do.dataset_images(dataset_id))

    def add_images(self, dataset_id: str, files: Mapping[str, bytes]) -> schemas.AddedImages:
        """Add images to a data set of yours.

        Args:
            files: their bytes by name; all of them together no larger than a body may be (32 MB, unless the server's
                operator has said otherwise).
        """
        return self._run(self._do.add_images(dataset_id, files))

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a data set of yours, with its images. Raises NotFound."""
        self._run(self._do.delete_dataset(dataset_id))

    def survey(
        self,
        dataset: str,
        *,
        model: str = "vgg16",
        layers: Sequence[str] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
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
        return self._own(self._run(self._do.survey(idempotency_key, fields)))

    def surveys(self) -> list[Survey]:
        """Your surveys and those that are everybody's, newest first."""
        return self._run(self._do.surveys())

    def get_survey(self, survey_id: str) -> Survey:
        """One survey, as far as it is. Raises NotFound."""
        return self._run(self._do.get_survey(survey_id))

    def delete_survey(self, survey_id: str) -> None:
        """Delete a survey of yours. Raises NotFound."""
        self._run(self._do.delete_survey(survey_id))

    def survey_csv(self, survey_id: str) -> str:
        """A table of all kernels of all its layers. Raises NotFound."""
        return self._run(self._do.survey_csv(survey_id))

    def layer_kernels(self, network: str, layer: str, survey: str | None = None) -> LayerKernels:
        """All kernels of a layer, in their order, as a survey knows them. Raises NotFound.

        Args:
            survey: its id; the newest one that has the layer unless given.
        """
        return self._run(self._do.layer_kernels(network, layer, survey))

    def kernel(self, network: str, layer: str, kernel: int, survey: str | None = None) -> KernelPage:
        """What is known of one kernel, with the URLs of its crops and X̂ for `file`; `survey` as of `layer_kernels`."""
        return self._run(self._do.kernel(network, layer, kernel, survey))

    def explain_kernels(
        self,
        survey_id: str,
        layer: str,
        kernels: Iterable[int],
        images: int = SHOWN,
        effort: str = "quick",
        *,
        rivals: bool = False,
    ) -> list[Job]:
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
        return [self._own(job) for job in self._run(self._do.explain_kernels(survey_id, fields))]

    def file(self, path: str) -> bytes:
        """A file by the URL path that a result or a job's `links` name."""
        return self._run(self._do.file(path))

    def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                found: T = end.value
                return found
            answer = self._done(step)

    def _done(self, step: Call | Pause) -> httpx.Response | httpx.TransportError | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(step.method, step.path, **step.options)
        except httpx.TransportError as error:
            return error

    def _own(self, job: Job) -> Job:
        job._client = self  # noqa: SLF001
        self._own_all(job.known_results or [])
        return job

    def _own_all(self, results: list[Result]) -> list[Result]:
        for result in results:
            result._client = self  # noqa: SLF001
        return results

    def _results(self, job: Job, most: int = sys.maxsize) -> list[Result]:
        return self._own_all(self._run(self._do.results(job, ResultsOf[Result], most)))

    def _waited(self, job: Job, timeout: float | None, on_change: Callable[[Job], None] | None) -> Job:
        told = (lambda found: on_change(self._own(found))) if on_change else None
        return self._own(self._run(self._do.wait(job, timeout, told)))

    def _cancelled(self, job_id: str) -> Job:
        return self._own(self._run(self._do.cancel(job_id)))

    def _retried(self, job_id: str) -> Job:
        return self._own(self._run(self._do.retry(job_id)))

    def _deleted(self, job_id: str) -> None:
        self._run(self._do.delete(job_id))

    def _saved(self, job: Job, directory: str | Path, names: Sequence[str]) -> list[Path]:
        job.results  # noqa: B018 - reads them
        return self._run(self._do.save(job, directory, names))

    def _streamed(self, path: str, file: Path) -> Path:
        try:
            with self._http.stream("GET", self._do.at(path)) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                with written(file) as target:
                    for part in response.iter_bytes():
                        target.write(part)
        except httpx.TransportError as error:
            raise ServerUnreachable(self.url, error) from error
        return file

    def _events(self, job: Job) -> Iterator[Event]:
        story, patience = Story(Result), Patience(self._do.away)
        while not story.over:
            error: Exception = EOFError("the stream ended early")
            try:
                for event in self._connected(job, story):
                    patience = Patience(self._do.away)
                    yield event
            except httpx.TransportError as lost:
                error = lost
            if story.over:
                return
            pause = patience.next()
            if pause is None:
                raise ServerUnreachable(self.url, error)
            time.sleep(pause.seconds)

    def _connected(self, job: Job, story: Story) -> Iterator[Event]:
        """The events of one connection."""
        with self._http.stream(
            "GET", self._do.at(job.links["events"]), headers=story.headers, timeout=EVENTS_TIMEOUT
        ) as response:
            if response.status_code in PASSING:
                return
            if response.is_error:
                response.read()
                raise refusal(response)
            if response.status_code == 204:
                story.over = True
                return
            for sent in EventSource(response).iter_sse():
                if event := story.told(sent):
                    if isinstance(event, ResultEvent) and isinstance(event.result, Result):
                        event.result._client = self  # noqa: SLF001
                    yield event
