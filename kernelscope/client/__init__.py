"""The Python client: `from kernelscope import Client`, or `AsyncClient`. docs/client.md shows how.

`flows` says what is sent and what its answers mean; `sync` and `asynchronous` send it, each in its own way.
"""

from kernelscope.client.asynchronous import AsyncClient, AsyncJob, AsyncResult
from kernelscope.client.errors import (
    ClientError,
    InvalidAddress,
    JobFailed,
    NotFound,
    NotKernelscope,
    ResultsNotRead,
    ServerError,
    ServerUnreachable,
    TooManyRequests,
    Unauthorized,
    WaitTimeout,
)
from kernelscope.client.events import Event, ProgressEvent, ResultEvent, StatusEvent
from kernelscope.client.sync import Client, Job, Result

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "AsyncResult",
    "Client",
    "ClientError",
    "Event",
    "InvalidAddress",
    "Job",
    "JobFailed",
    "NotFound",
    "NotKernelscope",
    "ProgressEvent",
    "Result",
    "ResultEvent",
    "ResultsNotRead",
    "ServerError",
    "ServerUnreachable",
    "StatusEvent",
    "TooManyRequests",
    "Unauthorized",
    "WaitTimeout",
]
