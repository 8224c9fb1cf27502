"""What can go wrong between a client and its server."""

from __future__ import annotations

import httpx

from shared.errors import Problem
from shared.schemas import JobSummary


class ClientError(Exception):
    """The base of every error of this client."""


class ServerUnreachable(ClientError):
    """Nothing answers at this address, or what answers breaks off."""

    def __init__(self, url: str, error: Exception | None) -> None:
        reason = str(error) or type(error).__name__
        super().__init__(
            f"no Kernelscope server answers at {url} ({reason}); `kernelscope up` starts one on this machine"
        )


class InvalidAddress(ClientError):
    """The server's URL cannot be one."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(f"{url!r} is no server's address ({error}); one looks like http://127.0.0.1:8000")


class NotKernelscope(ClientError):
    """Something answers at this address, but not as Kernelscope does."""

    def __init__(self, url: str) -> None:
        super().__init__(f"what answers at {url} is no Kernelscope server, or one of another version")


class ServerError(ClientError):
    """The server refused; `problem` is what it said (RFC 9457), `status` its HTTP status."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status


class Unauthorized(ServerError):
    """The server wants an API key, or does not know this one: `Client(url, key=…)` or KERNELSCOPE_API_KEY."""


class NotFound(ServerError):
    """No such job, file, network; or it was removed."""


class TooManyRequests(ServerError):
    """More than the key may send or have open, for longer than the client's patience."""


class JobFailed(ClientError):
    """The job ended without an explanation; `job` has its results, each with its error."""

    def __init__(self, job: JobSummary, why: str) -> None:
        super().__init__(f"job {job.id} {job.status}: {why}")
        self.job = job


class ResultsNotRead(ClientError):
    """An `AsyncJob` of more than 64 items comes without its results."""

    def __init__(self, job: JobSummary) -> None:
        super().__init__(f"the results of job {job.id} are not read yet: `await job.read()`, or wait for it")


class WaitTimeout(ClientError):
    """The job had not ended when the time was over. It goes on: `client.job(id).wait()` waits again."""


KINDS = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound, 429: TooManyRequests}


def refusal(response: httpx.Response) -> ServerError:
    """The error of an answer of 4xx or 5xx; also of one that is not ours but a proxy's."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValueError:
        text = response.text[:200]
        if response.headers.get("content-type", "").startswith("text/html"):
            text = f"a web page came from {response.url}, by a proxy or another server than Kernelscope's"
        problem = Problem(type="about:blank", title=response.reason_phrase, status=response.status_code, detail=text)
    return refused(problem)


def refused(problem: Problem) -> ServerError:
    """The error of a problem, of the class that its status has."""
    return KINDS.get(problem.status, ServerError)(problem)
