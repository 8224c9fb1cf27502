"""The errors of the Python client."""

from __future__ import annotations

import httpx

from shared.errors import Problem
from shared.schemas import JobSummary


class ClientError(Exception):
    """The base class of all errors of this client."""


class ServerUnreachable(ClientError):
    """The server did not respond, or the connection was lost."""

    def __init__(self, url: str, error: Exception | None) -> None:
        reason = str(error) or type(error).__name__
        super().__init__(
            f"no Kernelscope server answers at {url} ({reason}); `kernelscope up` starts one on this machine"
        )


class UntrustedCertificate(ClientError):
    """The server's TLS certificate cannot be verified."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(
            f"the certificate of {url} is not trusted ({error}); if it comes from an authority of your own, name the "
            "file of that authority's certificate in SSL_CERT_FILE"
        )


def connection_error(url: str, error: httpx.TransportError) -> ServerUnreachable | UntrustedCertificate:
    """Why a request was not answered. An untrusted certificate will not change by another attempt."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UntrustedCertificate(url, error)
    return ServerUnreachable(url, error)


class InvalidAddress(ClientError):
    """The server's URL is not valid."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(f"{url!r} is not the address of a server ({error}); write it like http://127.0.0.1:8000")


class NotKernelscope(ClientError):
    """The response did not come from a Kernelscope server of a compatible version."""

    def __init__(self, url: str) -> None:
        super().__init__(f"the server at {url} is not a Kernelscope server, or has another version")


class ServerError(ClientError):
    """The server returned an error.

    Attributes:
        problem: the body of the response (RFC 9457).
        retry_after: seconds after which the server accepts the request again, where it says so.
    """

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def too_large(self) -> bool:
        """Whether the job alone is more than the key's quota or the queue: it is never accepted as it is."""
        limited = self.problem.type.endswith(("/quota-exceeded", "/queue-full"))
        return limited and self.retry_after is None


class Unauthorized(ServerError):
    """The server requires a valid API key: `Client(url, key=…)` or KERNELSCOPE_API_KEY."""


class NotFound(ServerError):
    """The job, file, network, data set or survey does not exist, or was deleted."""


class TooManyRequests(ServerError):
    """The API key's rate limit or quota is exceeded, and retrying did not help."""


class JobFailed(ClientError):
    """The job ended without an explanation. `job` has its results, each with its error."""

    def __init__(self, job: JobSummary, why: str) -> None:
        super().__init__(f"job {job.id} {job.status}: {why}")
        self.job = job


class ResultsNotRead(ClientError):
    """The results of an `AsyncJob` of more than 64 items have not been read yet."""

    def __init__(self, job: JobSummary) -> None:
        super().__init__(f"the results of job {job.id} are not read yet: await job.read() or job.wait() first")


class WaitTimeout(ClientError):
    """The job did not end before the timeout. It continues: `client.job(id).wait()` waits again."""


CLASSES = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound, 429: TooManyRequests}


def error_of(response: httpx.Response) -> ServerError:
    """The error of a 4xx or 5xx response, which may be a proxy's."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValueError:
        text = response.text[:200]
        if response.headers.get("content-type", "").startswith("text/html"):
            text = f"{response.url} returned a web page; it comes from a proxy or another server"
        problem = Problem(type="about:blank", title=response.reason_phrase, status=response.status_code, detail=text)
    seconds = response.headers.get("retry-after", "")
    return error_for(problem, float(seconds) if seconds.isdigit() else None)


def error_for(problem: Problem, retry_after: float | None = None) -> ServerError:
    """The error of the class that belongs to the problem's status."""
    return CLASSES.get(problem.status, ServerError)(problem, retry_after)
