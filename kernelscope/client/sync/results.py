# Generated from asynchronous/results.py by `python -m kernelscope.client.generate`: edit that.
"""The results of a job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PrivateAttr

from kernelscope.client import notebook
from kernelscope.client.files import parsed
from kernelscope.client.sync.connection import Connection
from shared.schemas import ItemResult, Losses, Metrics


class Result(ItemResult):
    """The result of one item. Its files are downloaded when they are first used, and cached."""

    _client: Connection = PrivateAttr()
    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Its files are downloaded by the client that received it."""
        if isinstance(context, Connection):
            self._client = context

    def file(self, name: str) -> bytes:
        """The content of one of `artifacts`.

        Raises:
            KeyError: the result has no such file; a failed one has none.
        """
        if name not in self._files:
            self._files[name] = self._client.file(self.artifacts[name])
        return self._files[name]

    @property
    def optimized(self) -> Image.Image:
        """X̂, the delivered PNG: RGB, 8 bits, at the network's input size."""
        image: Image.Image = parsed("optimized.png", self.file("optimized.png"))
        return image

    @property
    def optimized_array(self) -> NDArray[np.float32]:
        """X̂ in the network's normalised input space, (3, H, W), where 0 is the mean colour."""
        array: NDArray[np.float32] = parsed("optimized.npy", self.file("optimized.npy"))
        return array

    @property
    def original(self) -> Image.Image:
        """X, the image at the network's input size: RGB, 8 bits."""
        image: Image.Image = parsed("original.png", self.file("original.png"))
        return image

    @property
    def contrast(self) -> Image.Image:
        """X̂ with its contrast stretched about the mean colour."""
        image: Image.Image = parsed("contrast.png", self.file("contrast.png"))
        return image

    @property
    def panel(self) -> Image.Image:
        """A figure of X, X̂, the feature maps before and after, the most active other kernels, and the metrics."""
        image: Image.Image = parsed("panel.png", self.file("panel.png"))
        return image

    @property
    def maps(self) -> dict[str, NDArray[Any]]:
        """Feature maps: `before` F_i and `after` F̂_i, (h, w); `others` (2,), and their maps (2, h, w)."""
        maps: dict[str, NDArray[Any]] = parsed("maps.npz", self.file("maps.npz"))
        return maps

    @property
    def history(self) -> dict[str, Any]:
        """The loss curve: `columns`, and `rows` of evaluation, L_p, L_s, L_r, L."""
        history: dict[str, Any] = parsed("history.json", self.file("history.json"))
        return history

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's own
        array = parsed("optimized.npy", self._cached("optimized.npy"))
        return np.array(array, dtype=dtype, copy=True if copy is None else copy)

    def _repr_html_(self) -> str:
        return notebook.of_result(self, self._picture())

    def _picture(self) -> bytes | None:
        """What a notebook shows of it, if available."""
        try:
            return self._cached("contrast.png")
        except KeyError:
            return None

    def _cached(self, name: str) -> bytes:
        """The content of one of `artifacts`. Raises KeyError."""
        return self.file(name)


class Explanation(Result):
    """A result with an explanation: it has a kernel, metrics and losses."""

    status: Literal["succeeded"]
    kernel: int
    metrics: Metrics
    losses: Losses


AnyResult = Annotated[Explanation | Result, Field(union_mode="left_to_right")]
