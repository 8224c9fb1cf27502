"""A small HTTP client for a Kernelscope server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from shared.errors import Problem
from shared.schemas import Job

POLL_SECONDS = 0.25
WAIT_SECONDS = 20


class ServerError(Exception):
    """The server refused; `problem` is what it said (RFC 9457)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class Client:
    """Submits jobs, waits for them, fetches their files.

    Args:
        url: of the server, `http://127.0.0.1:8000`.
        key: an API key, where the server needs one.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the connections."""
        self._http.close()

    def explain(self, images: Sequence[bytes], **fields: str) -> Job:
        """`POST /explain` with files and form fields (`layer="conv3_3"`, `kernels="3,16"`)."""
        files = [("image", (f"image{number}", data)) for number, data in enumerate(images)]
        return Job.model_validate_json(self._checked(self._http.post("/explain", files=files, data=fields)))

    def job(self, job_id: str, wait: int = 0) -> Job:
        """`GET /jobs/{id}`: as it stands, or once it has ended, or after so many seconds (at most 60)."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        return Job.model_validate_json(self._checked(self._http.get(f"/jobs/{job_id}", headers=headers)))

    def wait(self, job_id: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """The job once it has ended; `on_change` sees it four times a second until then."""
        while True:
            job = self.job(job_id, wait=0 if on_change else WAIT_SECONDS)
            if on_change:
                on_change(job)
            if job.status.terminal:
                return job
            if on_change:
                time.sleep(POLL_SECONDS)

    def file(self, path: str) -> bytes:
        """A file by the URL path that a result names."""
        return self._checked(self._http.get(path))

    def model(self, name: str) -> dict[str, Any]:
        """`GET /models/{name}`."""
        answer: dict[str, Any] = httpx.Response(200, content=self._checked(self._http.get(f"/models/{name}"))).json()
        return answer

    @staticmethod
    def _checked(response: httpx.Response) -> bytes:
        if response.is_success:
            return response.content
        try:
            problem = Problem.model_validate_json(response.content)
        except ValueError:  # not ours: a proxy, say
            text = response.text[:200]
            problem = Problem(
                type="about:blank", title=response.reason_phrase, status=response.status_code, detail=text
            )
        raise ServerError(problem)
