"""Data sets, surveys, and what surveys found about kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kernelscope.client.asynchronous.connection import AsyncConnection
from kernelscope.client.asynchronous.jobs import AsyncJob
from kernelscope.client.options import Effort
from kernelscope.client.transport import idempotent, quoted
from shared import schemas
from shared.schemas import SHOWN, KernelPage, LayerKernels, Survey

T = TypeVar("T")

UPLOAD_SECONDS = 300.0  # timeout of an upload, whose images the server decodes
JSON = {"Accept": "application/json"}  # of routes that return a web page to a browser


class AsyncSurveys(AsyncConnection):
    """The client's methods for data sets and surveys."""

    async def datasets(self) -> list[schemas.DataSet]:
        """Your data sets and the public ones, newest first."""
        return await self._read(list[schemas.DataSet], "GET", "/datasets")

    async def create_dataset(self, name: str) -> schemas.DataSet:
        """Create an empty data set. This request is never repeated, because it would create another one."""
        return await self._read(schemas.DataSet, "POST", "/datasets", patience=0, json={"name": name})

    async def dataset_images(self, dataset_id: str) -> list[schemas.DataSetImage]:
        """The images of a data set by name and SHA-256, in the order in which they were added. Raises NotFound."""
        found: list[schemas.DataSetImage] = []
        params: dict[str, Any] = {"limit": 1000}
        while True:
            page = await self._read(schemas.DataSetImages, "GET", f"/datasets/{dataset_id}/images", params=params)
            found += page.images
            if page.next_cursor is None:
                return found
            params["cursor"] = page.next_cursor

    async def add_images(self, dataset_id: str, files: Mapping[str, bytes]) -> schemas.AddedImages:
        """Add images to one of your data sets.

        Args:
            files: their content by name; together no larger than a request body may be (32 MB, unless the server's
                operator changed that).
        """
        parts = [("image", file) for file in files.items()]
        path = f"/datasets/{dataset_id}/images"
        return await self._read(schemas.AddedImages, "POST", path, files=parts, timeout=UPLOAD_SECONDS)

    async def delete_dataset(self, dataset_id: str) -> None:
        """Delete one of your data sets, with its images. Raises NotFound."""
        await self._send("DELETE", f"/datasets/{dataset_id}")

    async def survey(
        self,
        dataset: str,
        *,
        model: str = "vgg16",
        layers: Sequence[str] | None = None,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob:
        """`POST /surveys`: find out what every kernel of some layers responds to in the images of a data set.

        Args:
            dataset: its id.
            layers: by default all that the weights file covers.
            webhook_url: called when the survey has ended.
            idempotency_key: requests with the same key start one survey; by default each call starts its own.

        Returns:
            Its job, without waiting for it. The job's id is also the survey's.
        """
        fields = {"dataset": dataset, "model": model, "layers": list(layers or []), "webhook_url": webhook_url}
        body = {name: value for name, value in fields.items() if value}
        return await self._read(AsyncJob, "POST", "/surveys", json=body, headers=idempotent(idempotency_key))

    async def surveys(self) -> list[Survey]:
        """Your surveys and the public ones, newest first."""
        return await self._read(list[Survey], "GET", "/surveys")

    async def get_survey(self, survey_id: str) -> Survey:
        """A survey, which may still be running. Raises NotFound."""
        return await self._read(Survey, "GET", f"/surveys/{quoted(survey_id)}")

    async def delete_survey(self, survey_id: str) -> None:
        """Delete one of your surveys. Raises NotFound."""
        await self._send("DELETE", f"/surveys/{quoted(survey_id)}")

    async def survey_csv(self, survey_id: str) -> str:
        """All kernels of all layers of a survey, as CSV. Raises NotFound."""
        response = await self._send("GET", f"/surveys/{quoted(survey_id)}/kernels.csv")
        return response.content.decode()

    async def layer_kernels(self, network: str, layer: str, survey: str | None = None) -> LayerKernels:
        """All kernels of a layer, by index, with what a survey found. Raises NotFound.

        Args:
            survey: its id; by default the newest survey of that layer.
        """
        return await self._read_kernels(LayerKernels, survey, network, layer)

    async def kernel(self, network: str, layer: str, kernel: int, survey: str | None = None) -> KernelPage:
        """What a survey found about one kernel, with links to its crops and X̂ for `file`. Raises NotFound.

        Args:
            survey: its id; by default the newest survey of that layer.
        """
        return await self._read_kernels(KernelPage, survey, network, layer, kernel)

    async def explain_kernels(
        self,
        survey_id: str,
        layer: str,
        kernels: Iterable[int],
        images: int = SHOWN,
        effort: Effort = "quick",
        *,
        rivals: bool = False,
    ) -> list[AsyncJob]:
        """`POST /surveys/{id}/explanations`: explain kernels on the images that activate them most.

        A repeated call returns the same jobs.

        Args:
            images: how many images of each kernel.
            rivals: also explain the two most active other kernels of these images, which `discrimination` needs.

        Returns:
            A job for each kernel; with `rivals` two.
        """
        fields = {
            "layer": layer,
            "kernels": list(map(int, kernels)),
            "images": images,
            "effort": effort,
            "rivals": rivals,
        }
        path = f"/surveys/{quoted(survey_id)}/explanations"
        return await self._read(list[AsyncJob], "POST", path, json=fields)

    async def _read_kernels(self, kind: type[T], survey: str | None, *place: str | int) -> T:
        path = "/".join(["/kernels", *map(quoted, place)])
        return await self._read(kind, "GET", path, params={"survey": survey} if survey else {}, headers=JSON)
