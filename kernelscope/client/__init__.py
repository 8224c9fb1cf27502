"""The Python client: `from kernelscope import Client`, or `AsyncClient`. See docs/client.md."""

from kernelscope.client.asynchronous import AsyncClient, AsyncExplanation, AsyncJob, AsyncResult
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
    UntrustedCertificate,
    WaitTimeout,
)
from kernelscope.client.events import Event, ProgressEvent, ResultEvent, StatusEvent
from kernelscope.client.options import ActivationsOptions, ExplainOptions
from kernelscope.client.sync import Client, Explanation, Job, Result
from shared.catalogue import ModelInfo
from shared.errors import Problem
from shared.schemas import (
    ActiveKernel,
    DataSet,
    ItemResult,
    JobSummary,
    KernelPage,
    LayerKernels,
    Losses,
    Metrics,
    Status,
    Survey,
)

__all__ = [
    "ActivationsOptions",
    "ActiveKernel",
    "AsyncClient",
    "AsyncExplanation",
    "AsyncJob",
    "AsyncResult",
    "Client",
    "ClientError",
    "DataSet",
    "Event",
    "ExplainOptions",
    "Explanation",
    "InvalidAddress",
    "ItemResult",
    "Job",
    "JobFailed",
    "JobSummary",
    "KernelPage",
    "LayerKernels",
    "Losses",
    "Metrics",
    "ModelInfo",
    "NotFound",
    "NotKernelscope",
    "Problem",
    "ProgressEvent",
    "Result",
    "ResultEvent",
    "ResultsNotRead",
    "ServerError",
    "ServerUnreachable",
    "Status",
    "StatusEvent",
    "Survey",
    "TooManyRequests",
    "Unauthorized",
    "UntrustedCertificate",
    "WaitTimeout",
]
