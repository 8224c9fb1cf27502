# Generated from asynchronous/jobs.py by `python -m kernelscope.client.generate`: edit that.
"""Jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Self

import httpx
from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter, computed_field

from kernelscope.client import notebook
from kernelscope.client.errors import JobFailed, ServerUnreachable, WaitTimeout
from kernelscope.client.events import EventLog, ProgressEvent, ResultEvent, StatusEvent
from kernelscope.client.files import SAVED, expanded, made, to_save, write
from kernelscope.client.sync.connection import Connection
from kernelscope.client.sync.results import AnyResult, Explanation, Result
from kernelscope.client.transport import directly
from shared.errors import Problem
from shared.schemas import ActiveKernel, JobSummary

LONG_POLL_SECONDS = 20  # for which the server may delay a response until the job has ended
HEARTBEAT_SECONDS = 15.0  # between two heartbeats of an event stream
SILENCE_SECONDS = 45.0  # after which an event stream without heartbeats is regarded as lost
REFRESH_SECONDS = 5.0  # between two requests for the whole job while its events are followed
REPORT_SECONDS = 0.25  # between two calls of `on_change` while the status stays the same
MOST_BROKEN = 10  # event streams in a row that end early and without an event
PAGE_RESULTS = 100  # results that one request reads


class ResultsPage(BaseModel):
    """Some of a job's results."""

    results: list[AnyResult]
    next_cursor: str | None


class Job(JobSummary):
    """A job, as it was when it was last read; `refresh` and `wait` update it."""

    error: Problem | None
    known_results: list[AnyResult] | None = Field(
        alias="results",
        exclude=True,
        repr=False,
        description="null: too many to be sent with the job, and not yet read",
    )
    _client: Connection = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Its requests are sent by the client that received it."""
        if isinstance(context, Connection):
            self._client = context

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def results(self) -> list[Result]:
        """The results so far, by item index; those of a job of more than 64 items are read on first use."""
        if self.known_results is None:
            return self.read()
        return self.known_results

    @property
    def explanations(self) -> list[Explanation]:
        """The results that succeeded. Each has a kernel, metrics and losses."""
        return [result for result in self.results if isinstance(result, Explanation)]

    @property
    def rankings(self) -> list[list[ActiveKernel]]:
        """Of `activations`: for each image the kernels of the layer, most active first; empty where that failed."""
        return [result.ranking or [] for result in self.results]

    def read(self) -> list[Result]:
        """Read `results`, unless they are there already."""
        if self.known_results is None:
            self.known_results = self._read_results()
        return self.results

    def refresh(self) -> Self:
        """Read the job again."""
        return self._become(self._client._read(Job, "GET", f"/jobs/{self.id}"))

    def wait(self, timeout: float | None = None, on_change: Callable[[Self], object] | None = None) -> Self:
        """Wait until the job has ended, whether or not it succeeded (see `check`). A restart of the server is no error.

        Args:
            timeout: seconds.
            on_change: called with a snapshot of the job after each change, at most four times a second.

        Raises:
            WaitTimeout, ServerUnreachable, ServerError.
        """
        end = inf if timeout is None else monotonic() + timeout
        if on_change and not self.status.terminal:
            self._follow(end, on_change)
        while not self.status.terminal:
            left = end - monotonic()
            if left <= 0:
                raise WaitTimeout(f"job {self.id} is still {self.status} after {timeout:g} s; it continues")
            seconds = int(min(LONG_POLL_SECONDS, max(1.0, left)))
            self._reload(headers={"Prefer": f"wait={seconds}"}, timeout=seconds + 30.0)
        return self

    def events(self) -> Iterator[StatusEvent | ProgressEvent | ResultEvent[Result]]:
        """The job's events from its start to its end, each once and as they happen; lost connections are resumed."""
        with closing(self._updates(SILENCE_SECONDS)) as updates:
            for event in updates:
                if event:
                    yield event
                else:  # raises if the server is away
                    self._client._read(Job, "GET", f"/jobs/{self.id}", patience=self._client._restart)

    def cancel(self) -> Self:
        """Cancel the job; finished results remain. Raises ServerError (409) if it has ended already."""
        return self._become(self._client._read(Job, "POST", f"/jobs/{self.id}/cancel"))

    def retry(self) -> Self:
        """Run its failed items again. Raises ServerError (409) if none has failed or the job has not ended."""
        return self._become(self._client._read(Job, "POST", f"/jobs/{self.id}/retry"))

    def delete(self) -> None:
        """Delete the job and its files."""
        self._client._send("DELETE", f"/jobs/{self.id}")

    def save(self, directory: str | Path, names: Sequence[str] = SAVED) -> list[Path]:
        """Download these files of every result, named by layer and kernel, and write `job.json`.

        Returns:
            The paths of the files.
        """
        folder = directly(made, directory)
        wanted = to_save(self, self.read(), folder, names)
        files = [self._client._download(link, file) for link, file in wanted]
        return [*files, directly(write, folder / "job.json", self.model_dump_json(indent=1).encode())]

    def bundle(self, path: str | Path) -> Path:
        """Download everything about the job as one ZIP file, which replaces `path` once it is complete."""
        return self._client._download(self.links["bundle"], expanded(path))

    def check(self) -> Self:
        """The job itself, if it is running or has at least one explanation.

        Raises:
            JobFailed: it ended without one.
        """
        if self.status.terminal and self.progress.completed <= self.failed_items:
            of_items = (one.error for one in self.known_results or [] if one.error)
            error = self.error or next(of_items, None)
            raise JobFailed(self, error.detail if error else "no item was completed")
        return self

    def _reload(self, **options: Any) -> None:
        """Read the job again, even if the server restarts."""
        patience = self._client._restart
        self._become(self._client._read(Job, "GET", f"/jobs/{self.id}", patience=patience, **options))

    def _follow(self, end: float, on_change: Callable[[Self], object]) -> None:
        """Call `on_change` with every event, until the job or the time has ended.

        Progress and results are those of the events. What these do not contain, such as the place in the queue, is
        read with every new status and every few seconds.
        """
        read = reported = -inf
        silence = max(1.0, min(REFRESH_SECONDS, end - monotonic()))
        with closing(self._updates(silence)) as updates:
            for event in updates:
                now = monotonic()
                if isinstance(event, StatusEvent | None) or now - read >= REFRESH_SECONDS:
                    self._reload()
                    read, reported = now, -inf
                else:
                    self._apply(event)
                if now - reported >= REPORT_SECONDS:
                    on_change(self.model_copy())
                    reported = now
                if self.status.terminal or now >= end:
                    return

    def _apply(self, event: ProgressEvent | ResultEvent[Result]) -> None:
        """Update the job by one of its events, which may be older than what was read."""
        if isinstance(event, ProgressEvent):
            if event.fraction >= self.progress.fraction:
                names = ("completed", "total", "iteration", "budget", "loss", "fraction")
                self.progress = self.progress.model_copy(update={name: getattr(event, name) for name in names})
        elif self.known_results is not None:
            known = {result.index: result for result in (*self.known_results, event.result)}
            self.known_results = [known[index] for index in sorted(known)]

    def _updates(self, silence: float) -> Generator[StatusEvent | ProgressEvent | ResultEvent[Result] | None]:
        """The job's events over any number of connections; None when nothing was received for `silence` seconds."""
        log = EventLog[Result](TypeAdapter(AnyResult), self._client)
        broken = 0
        while not log.ended:
            began, received, lost = monotonic(), False, None
            try:
                with closing(self._client._events(self.links["events"], log, silence)) as events:
                    for event in events:
                        received = True
                        yield event
            except httpx.ReadTimeout:
                yield None
                continue
            except httpx.TransportError as error:
                lost = error
            broken = broken + 1 if not received and monotonic() - began < HEARTBEAT_SECONDS else 0
            if broken > MOST_BROKEN:
                raise ServerUnreachable(self._client.url, lost or EOFError("the event stream ended early"))
            if broken and not log.ended:
                time.sleep(1)

    def _read_results(self, most: float = inf) -> list[AnyResult]:
        """The results so far, up to this number."""
        found: list[AnyResult] = []
        params: dict[str, Any] = {}
        link = self._client._at(self.links["results"])
        while len(found) < most:
            params["limit"] = min(PAGE_RESULTS, most - len(found))
            page = self._client._read(ResultsPage, "GET", link, params=params)
            found += page.results
            if page.next_cursor is None:
                break
            params["cursor"] = page.next_cursor
        return found

    def _repr_html_(self) -> str:
        shown = self._shown()
        count = max(self.progress.completed, len(self.known_results or []))
        return notebook.of_job(self, self.error, count, [(result, result._picture()) for result in shown])

    def _shown(self) -> Sequence[Result]:
        """The results that a notebook shows."""
        if self.known_results is None:
            return self._read_results(notebook.MOST_ROWS)
        return self.known_results[: notebook.MOST_ROWS]

    def _become(self, other: Job) -> Self:
        self.__dict__.update(other.__dict__)
        return self

    def _plain(self) -> tuple[Any, ...]:
        return self.model_dump(exclude={"results"}), [one.model_dump() for one in self.known_results or []]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self._plain() == other._plain()

    __hash__ = None  # type: ignore[assignment]
