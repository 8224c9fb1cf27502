"""The client for programs on an event loop; `python -m kernelscope.client.generate` derives the synchronous one."""

from kernelscope.client.asynchronous.client import AsyncClient
from kernelscope.client.asynchronous.jobs import AsyncJob
from kernelscope.client.asynchronous.results import AsyncExplanation, AsyncResult

__all__ = ["AsyncClient", "AsyncExplanation", "AsyncJob", "AsyncResult"]
