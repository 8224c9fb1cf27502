"""Requests to one server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urljoin

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import TypeAdapter, ValidationError
from tenacity import AsyncRetrying

from kernelscope.client.errors import NotKernelscope, connection_error, error_of
from kernelscope.client.events import EventLog, ProgressEvent, ResultEvent, StatusEvent
from kernelscope.client.files import PartFile
from kernelscope.client.transport import DIRECT, RESTART_SECONDS, address, headers, in_thread, retrying
from shared.schemas import ItemResult

T = TypeVar("T")
ResultT = TypeVar("ResultT", bound=ItemResult)

CHUNK_BYTES = 1 << 20  # of a download, written at once


class AsyncConnection:
    """Sends requests to one server, and again while it is unavailable."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout: float = 30.0, patience: float = 10.0
    ) -> None:
        self.url = address(url)
        self._patience = patience
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers(key), timeout=timeout, mounts=DIRECT)

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def file(self, path: str) -> bytes:
        """Download a file.

        Args:
            path: URL path, from a result's `artifacts`, a job's `links` or a kernel's page.
        """
        return (await self._send("GET", self._at(path))).content

    def _at(self, link: str) -> str:
        """The URL of a link, which includes the path under which a proxy serves the API."""
        return urljoin(self.url, link)

    @property
    def _restart(self) -> float:
        """Seconds for which the server may be unavailable while a job is waited for."""
        return max(self._patience, RESTART_SECONDS)

    async def _read(self, kind: type[T], method: str, path: str, **options: Any) -> T:
        """Send a request, and parse the response. Raises NotKernelscope, and what `_send` raises."""
        response = await self._send(method, path, **options)
        try:
            return TypeAdapter(kind).validate_json(response.content, context=self)
        except ValidationError as error:
            raise NotKernelscope(self.url) from error

    async def _send(self, method: str, path: str, *, patience: float | None = None, **options: Any) -> httpx.Response:
        """Send a request, if need be again. Raises ServerUnreachable, ServerError, UntrustedCertificate."""
        seconds = self._patience if patience is None else patience
        return await retrying(AsyncRetrying, seconds)(self._send_once, method, path, **options)

    async def _send_once(
        self, method: str, path: str, *, stream: bool = False, silent: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request.

        Args:
            stream: the body of the response is not read yet, unless it is an error.
            silent: a response may be late: httpx.ReadTimeout is raised as it is.
        """
        request = self._http.build_request(method, path, **options)
        try:
            response = await self._http.send(request, stream=stream)
            if response.is_error:
                await response.aread()
                raise error_of(response)
            if not response.is_success:  # a redirection is another server's, a proxy's or a sign-in page's
                await response.aclose()
                raise NotKernelscope(self.url)
        except httpx.TransportError as error:
            if silent and isinstance(error, httpx.ReadTimeout):
                raise
            raise connection_error(self.url, error) from error
        return response

    async def _download(self, link: str, target: Path) -> Path:
        """Download a file; a file of that name is replaced once the download is complete."""
        return await retrying(AsyncRetrying, self._patience)(self._download_once, link, target)

    async def _download_once(self, link: str, target: Path) -> Path:
        response = await self._send_once("GET", self._at(link), stream=True)
        try:
            part = await in_thread(PartFile, target)
            try:
                async for chunk in response.aiter_bytes(CHUNK_BYTES):
                    await in_thread(part.file.write, chunk)
                await in_thread(part.complete)
            finally:
                part.close()
        except httpx.TransportError as error:
            raise connection_error(self.url, error) from error
        finally:
            await response.aclose()
        return target

    async def _events(
        self, link: str, log: EventLog[ResultT], silence: float
    ) -> AsyncGenerator[StatusEvent | ProgressEvent | ResultEvent[ResultT]]:
        """The events of one connection.

        Raises:
            httpx.TransportError: the connection was lost, or for `silence` seconds nothing was sent.
        """
        timeout = httpx.Timeout(10.0, read=silence)
        options: dict[str, Any] = {"headers": log.headers, "timeout": timeout}
        response = await self._send("GET", self._at(link), patience=self._restart, stream=True, silent=True, **options)
        try:
            if response.status_code == 204:
                log.ended = True
                return
            async for sent in EventSource(response).aiter_sse():
                if event := log.parse(sent):
                    yield event
        except (SSEError, ValidationError) as error:
            raise NotKernelscope(self.url) from error
        finally:
            await response.aclose()
