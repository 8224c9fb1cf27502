"""The client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Unpack

from kernelscope.client.asynchronous.jobs import AsyncJob
from kernelscope.client.asynchronous.surveys import AsyncSurveys
from kernelscope.client.options import ActivationsOptions, ExplainOptions, Kernels
from kernelscope.client.pictures import Picture
from kernelscope.client.transport import form, idempotent, in_thread, quoted
from shared import schemas
from shared.catalogue import ModelInfo


class AsyncClient(AsyncSurveys):
    """A client of one server. It submits jobs, waits for them, and downloads their results.

    Args:
        url: of the server; by default KERNELSCOPE_URL, or port 8000 of this machine.
        key: an API key, if the server requires one; by default KERNELSCOPE_API_KEY.
        timeout: seconds that the server may take for one response.
        patience: seconds for which a request is retried while the server is unavailable (no connection, 502-504) or
            overloaded (429). A retried request never creates two jobs. 0: no retries. While a job is waited for, the
            server may be unavailable for at least a minute.
    """

    async def explain(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        kernels: Kernels,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncJob:
        """`POST /explain`: submit a job, and return it without waiting for it.

        Args:
            images: one, or up to 16: a path, the bytes of a file, a Pillow image, or an array (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4) of uint8 or of floats from 0 to 1.
            layer: for example `conv3_3`.
            kernels: zero-based indices, also as a range or an array, or "top:N" for the N most active ones.
            idempotency_key: requests with the same key create one job; by default each call creates its own.
            options: the other fields of the request (`methods`, `alpha`, `beta`, `effort`, `target_ssim`, …).

        Raises:
            ServerUnreachable.
            ServerError: 422 with the field that is invalid, and which values are valid.
        """
        fields = {"layer": layer, "kernels": kernels, "model": model, **options}
        return await self._submit("/explain", images, fields, idempotency_key)

    async def activations(
        self,
        images: Picture | Sequence[Picture],
        *,
        layer: str,
        model: str = "vgg16",
        idempotency_key: str | None = None,
        **options: Unpack[ActivationsOptions],
    ) -> AsyncJob:
        """`POST /activations`: a quick job that ranks the kernels of a layer, see `Job.rankings`."""
        fields = {"layer": layer, "model": model, **options}
        return await self._submit("/activations", images, fields, idempotency_key)

    async def job(self, job_id: str, wait: int = 0) -> AsyncJob:
        """A job by its id. Raises NotFound.

        Args:
            wait: seconds, at most 60, to wait for its end.
        """
        params: dict[str, Any] = {"headers": {"Prefer": f"wait={wait}"}, "timeout": wait + 30.0} if wait else {}
        return await self._read(AsyncJob, "GET", f"/jobs/{job_id}", **params)

    async def jobs(
        self, status: str | None = None, model: str | None = None, layer: str | None = None
    ) -> AsyncIterator[schemas.JobSummary]:
        """Your jobs, newest first. Pages are requested as they are needed."""
        filters = {"status": status, "model": model, "layer": layer, "limit": 50}
        params = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = await self._read(schemas.Page, "GET", "/jobs", params=params)
            for one in page.jobs:
                yield one
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    async def models(self) -> list[ModelInfo]:
        """Every network with its layers, and whether it can be explained now."""
        return await self._read(list[ModelInfo], "GET", "/models")

    async def model(self, name: str) -> ModelInfo:
        """One network. Raises NotFound."""
        return await self._read(ModelInfo, "GET", f"/models/{quoted(name)}")

    async def _submit(
        self, path: str, images: Picture | Sequence[Picture], fields: Mapping[str, Any], key: str | None
    ) -> AsyncJob:
        files, data = await in_thread(form, images, fields)
        return await self._read(AsyncJob, "POST", path, files=files, data=data, headers=idempotent(key))
