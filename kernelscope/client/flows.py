"""What is sent and what the answers mean, whoever sends it.

A flow is a generator: it yields calls to send and pauses to make, is sent each call's answer, and returns its result.
So the retries, the waits and the rest are written once, and a client is what runs flows.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote, urljoin
from uuid import uuid4

import httpx
import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from kernelscope.client.errors import InvalidAddress, NotKernelscope, ServerUnreachable, WaitTimeout, refusal
from kernelscope.client.jobs import BaseJob, ResultsOf, ResultT
from kernelscope.client.pictures import Picture, file_of
from shared import schemas
from shared.catalogue import ModelInfo
from shared.surveys.forms import KernelPage, LayerKernels, Survey

T = TypeVar("T")
JobT = TypeVar("JobT", bound=BaseJob[Any])
Kernels = int | np.integer[Any] | Iterable[int] | str

LONG_POLL_SECONDS = 20
LOOK_SECONDS = 0.25  # between two looks at a job whose progress is watched
UPLOAD_SECONDS = 300.0  # that a server may take to check a body of images
PAGE_RESULTS = 100  # that are read at once
RESTART_SECONDS = 60.0  # that a server may be away while its jobs are waited for
PASSING = (429, 502, 503, 504)  # statuses that are worth another try
# Between this machine and itself there is no proxy, whatever HTTP_PROXY says.
DIRECT: dict[str, httpx.BaseTransport | None] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
JSON = {"Accept": "application/json"}  # where a browser is given a page
SAVED = ("panel.png", "optimized.png", "contrast.png", "maps.npz")


@dataclass(frozen=True)
class Call:
    """A request to send."""

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of httpx


@dataclass(frozen=True)
class Pause:
    """Seconds to let pass."""

    seconds: float


Answer = httpx.Response | httpx.TransportError | None
Flow = Generator[Call | Pause, Answer, T]


@dataclass
class Patience:
    """For how long something is tried again, and when next: after 0.2 s, then twice as long, with chance in it.

    Args:
        seconds: in all; 0: one try.
    """

    seconds: float
    began: float = field(default_factory=time.monotonic)
    tries: int = 0

    def next(self, asked: str | None = None) -> Pause | None:
        """How long to wait; None where patience is at its end.

        Args:
            asked: the server's `Retry-After`.
        """
        usual = min(5.0, 0.2 * 2**self.tries) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        wait = max(usual, float(asked) if asked and asked.isdigit() else 0.0)
        self.tries += 1
        left = self.seconds - (time.monotonic() - self.began)
        return Pause(wait) if wait <= left else None


def sent(call: Call, url: str, patience: Patience) -> Flow[httpx.Response]:
    """A call's answer, tried again while the server is away or overloaded.

    Raises:
        ServerUnreachable, ServerError.
    """
    while True:
        answer = yield call
        if isinstance(answer, httpx.Response) and answer.status_code not in PASSING:
            if answer.is_error:
                raise refusal(answer)
            return answer
        asked = answer.headers.get("retry-after") if isinstance(answer, httpx.Response) else None
        pause = patience.next(asked)
        if pause is None:
            raise refusal(answer) if isinstance(answer, httpx.Response) else ServerUnreachable(url, answer)
        yield pause


def posting(path: str, images: Picture | Sequence[Picture], key: str | None, fields: Mapping[str, Any]) -> Call:
    """A call that makes one job however often it is sent: it has an `Idempotency-Key`."""
    files = [("image", file_of(image)) for image in _listed(images)]
    data = {name: _as_field(value) for name, value in fields.items() if value is not None}
    return Call("POST", path, {"files": files, "data": data, "headers": {"Idempotency-Key": key or uuid4().hex}})


def _listed(images: Picture | Sequence[Picture]) -> Sequence[Picture]:
    return [images] if isinstance(images, str | bytes | Path | Image.Image | np.ndarray) else images


def quoted(name: str) -> str:
    """As one part of a path."""
    return quote(name, safe="")


def _as_field(value: Any) -> str:
    """As a form field: several values, as of a list, a range or an array, by commas."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_as_field, value))
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def waited(
    found: JobT,
    get: Callable[[int], Flow[JobT]],
    timeout: float | None,
    on_change: Callable[[JobT], None] | None,
) -> Flow[JobT]:
    """The job once it has ended.

    Args:
        get: a flow that asks for the job: (seconds to wait) → flow.
        on_change: is called with the job as it stands, four times a second.

    Raises:
        WaitTimeout.
    """
    end = time.monotonic() + timeout if timeout is not None else None
    while not found.status.terminal:
        left = end - time.monotonic() if end is not None else float("inf")
        if left <= 0:
            raise WaitTimeout(f"job {found.id} is still {found.status} after {timeout:g} s; it goes on")
        found = yield from get(0 if on_change else int(min(LONG_POLL_SECONDS, max(1.0, left))))
        if on_change:
            on_change(found)
            if not found.status.terminal:
                yield Pause(min(LOOK_SECONDS, max(0.0, left)))
    return found


def folder_name(job: schemas.JobSummary, result: schemas.ItemResult) -> str:
    """`conv2_2-kernel16`, with the image's number, the method, α and β where there are several of them."""
    request = job.request
    several = len(request.images) > 1
    parts = [f"image{request.image_of(result.index)}"] if several else []
    parts += [request.layer, f"kernel{result.kernel}"]
    parts += [result.method] if len(request.methods) > 1 or result.method != "suppression" else []
    if result.method in schemas.OPTIMIZED:
        parts += [f"alpha{result.alpha:g}"] if len(request.alpha) > 1 else []
        parts += [f"beta{result.beta:g}"] if len(request.beta) > 1 else []
    return "-".join(parts)


def to_save(
    job: schemas.JobSummary, results: Sequence[schemas.ItemResult], directory: Path, names: Sequence[str]
) -> list[tuple[str, Path]]:
    """(URL path, file) of what `Job.save` writes beside `job.json`."""
    return [
        (result.artifacts[name], directory / f"{folder_name(job, result)}-{name}")
        for result in results
        for name in names
        if name in result.artifacts
    ]


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place once it is whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def parsed(name: str, data: bytes) -> Any:
    """A file's content: a Pillow image of a PNG, arrays of NPY and NPZ, objects of JSON."""
    form = name.rpartition(".")[2]
    if form == "png":
        return Image.open(BytesIO(data))
    if form == "json":
        return json.loads(data)
    loaded = np.load(BytesIO(data), allow_pickle=False)
    return {key: loaded[key] for key in loaded.files} if form == "npz" else loaded


def address(url: str | None) -> str:
    """Of the server: as given, or by KERNELSCOPE_URL, or on this machine.

    Raises:
        InvalidAddress.
    """
    url = (url or os.environ.get("KERNELSCOPE_URL") or "http://127.0.0.1:8000").rstrip("/")
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidAddress(url, error) from error
    return url


def headers(key: str | None) -> dict[str, str]:
    """With the API key, as given or by KERNELSCOPE_API_KEY."""
    key = key or os.environ.get("KERNELSCOPE_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Operations(Generic[JobT]):
    """Everything that a client can have done, as flows.

    Args:
        seconds: the client's patience.
        job: the class of the jobs that are made of answers.
    """

    url: str
    seconds: float
    job_type: type[JobT]

    def at(self, link: str) -> str:
        """The URL of what a job or a result names: its path is that of the host, whatever path the server has there."""
        return urljoin(self.url, link)

    def call(self, method: str, path: str, *, seconds: float | None = None, **options: Any) -> Flow[httpx.Response]:
        """Send something that may be sent again."""
        return sent(Call(method, path, options), self.url, Patience(self.seconds if seconds is None else seconds))

    def read(self, kind: type[T], answer: httpx.Response) -> T:
        """An answer's content. Raises NotKernelscope where it is something else."""
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValidationError as error:
            raise NotKernelscope(self.url) from error

    def submit(
        self, path: str, images: Picture | Sequence[Picture], key: str | None, fields: Mapping[str, Any]
    ) -> Flow[JobT]:
        """`POST /explain` or `/activations`."""
        answer = yield from sent(posting(path, images, key, fields), self.url, Patience(self.seconds))
        return self.read(self.job_type, answer)

    def job(self, job_id: str, wait: int = 0, seconds: float | None = None) -> Flow[JobT]:
        """`GET /jobs/{id}`, answered after `wait` seconds at the latest."""
        asked = {"headers": {"Prefer": f"wait={wait}"}, "timeout": wait + 30.0} if wait else {}
        answer = yield from self.call("GET", f"/jobs/{job_id}", seconds=seconds, **asked)
        return self.read(self.job_type, answer)

    def wait(self, found: JobT, timeout: float | None, on_change: Callable[[JobT], None] | None) -> Flow[JobT]:
        """The job once it has ended, whatever happens to the server meanwhile."""
        return waited(found, lambda wait: self.job(found.id, wait, self.away), timeout, on_change)

    def page(self, filters: Mapping[str, Any]) -> Flow[tuple[list[schemas.JobSummary], str | None]]:
        """`GET /jobs`: jobs, and the cursor of the next page."""
        answer = yield from self.call("GET", "/jobs", params={k: v for k, v in filters.items() if v is not None})
        page = self.read(schemas.Page, answer)
        return page.jobs, page.next_cursor

    def models(self) -> Flow[list[ModelInfo]]:
        """`GET /models`."""
        answer = yield from self.call("GET", "/models")
        return self.read(list[ModelInfo], answer)

    def model(self, name: str) -> Flow[ModelInfo]:
        """`GET /models/{name}`."""
        answer = yield from self.call("GET", f"/models/{name}")
        return self.read(ModelInfo, answer)

    def datasets(self) -> Flow[list[schemas.DataSet]]:
        """`GET /datasets`."""
        answer = yield from self.call("GET", "/datasets")
        return self.read(list[schemas.DataSet], answer)

    def create_dataset(self, name: str) -> Flow[schemas.DataSet]:
        """`POST /datasets`, sent once: it would make another one."""
        answer = yield from self.call("POST", "/datasets", seconds=0, json={"name": name})
        return self.read(schemas.DataSet, answer)

    def dataset_images(self, dataset_id: str) -> Flow[list[schemas.DataSetImage]]:
        """`GET /datasets/{id}/images`, page after page."""
        found: list[schemas.DataSetImage] = []
        asked: dict[str, Any] = {"limit": 1000}
        while True:
            answer = yield from self.call("GET", f"/datasets/{dataset_id}/images", params=asked)
            page = self.read(schemas.DataSetImages, answer)
            found += page.images
            if page.next_cursor is None:
                return found
            asked["cursor"] = page.next_cursor

    def add_images(self, dataset_id: str, files: Mapping[str, bytes]) -> Flow[schemas.AddedImages]:
        """`POST /datasets/{id}/images`, with files by name."""
        sent_as = [("image", one) for one in files.items()]
        answer = yield from self.call("POST", f"/datasets/{dataset_id}/images", files=sent_as, timeout=UPLOAD_SECONDS)
        return self.read(schemas.AddedImages, answer)

    def delete_dataset(self, dataset_id: str) -> Flow[None]:
        """`DELETE /datasets/{id}`."""
        yield from self.call("DELETE", f"/datasets/{dataset_id}")

    def survey(self, key: str | None, fields: Mapping[str, Any]) -> Flow[JobT]:
        """`POST /surveys`: one job however often it is sent."""
        asked = {name: value for name, value in fields.items() if value is not None}
        own = {"Idempotency-Key": key or uuid4().hex}
        answer = yield from self.call("POST", "/surveys", json=asked, headers=own)
        return self.read(self.job_type, answer)

    def surveys(self) -> Flow[list[Survey]]:
        """`GET /surveys`."""
        answer = yield from self.call("GET", "/surveys")
        return self.read(list[Survey], answer)

    def get_survey(self, survey_id: str) -> Flow[Survey]:
        """`GET /surveys/{id}`."""
        answer = yield from self.call("GET", f"/surveys/{quoted(survey_id)}")
        return self.read(Survey, answer)

    def delete_survey(self, survey_id: str) -> Flow[None]:
        """`DELETE /surveys/{id}`."""
        yield from self.call("DELETE", f"/surveys/{quoted(survey_id)}")

    def survey_csv(self, survey_id: str) -> Flow[str]:
        """`GET /surveys/{id}/kernels.csv`."""
        answer = yield from self.call("GET", f"/surveys/{quoted(survey_id)}/kernels.csv")
        return answer.content.decode()

    def layer_kernels(self, network: str, layer: str, survey: str | None) -> Flow[LayerKernels]:
        """`GET /kernels/{network}/{layer}`."""
        answer = yield from self._of_kernels((network, layer), survey)
        return self.read(LayerKernels, answer)

    def kernel(self, network: str, layer: str, kernel: int, survey: str | None) -> Flow[KernelPage]:
        """`GET /kernels/{network}/{layer}/{kernel}`."""
        answer = yield from self._of_kernels((network, layer, str(kernel)), survey)
        return self.read(KernelPage, answer)

    def _of_kernels(self, place: Iterable[str], survey: str | None) -> Flow[httpx.Response]:
        path = "/".join(map(quoted, place))
        asked = {"survey": survey} if survey else {}
        answer = yield from self.call("GET", f"/kernels/{path}", params=asked, headers=JSON)
        return answer

    def explain_kernels(self, survey_id: str, fields: Mapping[str, Any]) -> Flow[list[JobT]]:
        """`POST /surveys/{id}/explanations`; the same again is the same jobs."""
        answer = yield from self.call("POST", f"/surveys/{quoted(survey_id)}/explanations", json=fields)
        return self.read(list[self.job_type], answer)  # type: ignore[name-defined]

    def cancel(self, job_id: str) -> Flow[JobT]:
        """`POST /jobs/{id}/cancel`."""
        answer = yield from self.call("POST", f"/jobs/{job_id}/cancel")
        return self.read(self.job_type, answer)

    def retry(self, job_id: str) -> Flow[JobT]:
        """`POST /jobs/{id}/retry`."""
        answer = yield from self.call("POST", f"/jobs/{job_id}/retry")
        return self.read(self.job_type, answer)

    def results(self, job: schemas.JobSummary, kind: type[ResultsOf[ResultT]], most: int) -> Flow[list[ResultT]]:
        """`GET /jobs/{id}/results`, page after page, up to so many."""
        found: list[ResultT] = []
        asked: dict[str, Any] = {}
        while len(found) < most:
            asked["limit"] = min(PAGE_RESULTS, most - len(found))
            answer = yield from self.call("GET", self.at(job.links["results"]), params=asked)
            page = self.read(kind, answer)
            found += page.results
            if page.next_cursor is None:
                break
            asked["cursor"] = page.next_cursor
        return found

    def delete(self, job_id: str) -> Flow[None]:
        """`DELETE /jobs/{id}`."""
        yield from self.call("DELETE", f"/jobs/{job_id}")

    def file(self, path: str) -> Flow[bytes]:
        """The bytes at a URL path of the server, as `links` and `artifacts` have it."""
        answer = yield from self.call("GET", self.at(path))
        return answer.content

    def save(self, job: JobT, directory: str | Path, names: Sequence[str]) -> Flow[list[Path]]:
        """Files of every result, and `job.json`; the results have been read."""
        folder = Path(directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for path, file in to_save(job, job.known_results or [], folder, names):
            file.write_bytes((yield from self.file(path)))
            written.append(file)
        record = folder / "job.json"
        record.write_text(job.model_dump_json(indent=1))
        return [*written, record]

    @property
    def away(self) -> float:
        """For how long the server may be away while a job is waited for."""
        return max(self.seconds, RESTART_SECONDS)
