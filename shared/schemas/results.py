"""Results of items: losses and metrics of X̂, or the ranking of a layer's kernels."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from shared.errors import KernelscopeError, Problem
from shared.schemas.networks import WeightsUsed
from shared.schemas.plan import Item
from shared.schemas.requests import ExplainRequest

Stop = Literal["converged", "budget", "deadline", "cancelled"]


class Losses(BaseModel):
    """The terms of L = L_p + α·L_s + β·L_r (Formulas 1-4)."""

    preservation: float
    suppression: float
    regularization: float
    total: float


class Metrics(BaseModel):
    """Measurements of X̂, fed back through the network."""

    ssim: float | None = Field(description="SSIM of F̂_i against F_i; null on a 1×1 map")
    ssim_window: int | None = Field(description="side of the SSIM window: 11, or the largest odd size that fits")
    ssim_paper: float | None = Field(description="SSIM with zero padding and data range 1 on raw activations")
    mse_others: float = Field(description="mean of F̂_j² over j≠i: the paper's MSE (R.)")
    mse_others_before: float = Field(description="as `mse_others`, of the original image")
    mse_selected: float = Field(description="mean of (F̂_i − F_i)²")
    leakage: float = Field(description="Σ_{j≠i}‖F̂_j‖₁ / Σ_{j≠i}‖F_j‖₁")
    sparsity: float = Field(description="fraction of pixels that equal the mean colour in 8 bits")
    ssim_grey: float | None = Field(
        None,
        description="SSIM against F_i of the kernel's map of X̂ in greyscale: high where the kernel responds to shape "
        "rather than to colour; null on a 1×1 map, for greyscale networks, and in results of earlier versions",
    )
    invention: float | None = Field(
        None,
        description="activation below the layer that X̂ causes beyond the image's: the mean over the ReLU layers below "
        "of Σ max(ĥ − h, 0) / Σ h; 0 where there are none below, null in results of earlier versions",
    )
    invention_by_layer: dict[str, float] | None = Field(None, description="`invention` of each ReLU layer below")
    invention_beyond_blank: float | None = Field(
        None,
        description="L_e of `evidence`: as `invention`, but beyond the larger of the image's and a blank picture's "
        "activation",
    )


class ActiveKernel(BaseModel):
    """How active a kernel is on an image."""

    kernel: int
    mean: float = Field(description="mean activation over its feature map; kernels are ranked by it")
    max: float = Field(description="highest activation")
    active: float = Field(description="fraction of positions where the activation is above zero")


class Thumbnails(BaseModel):
    """Layout of `thumbnails.png`: entry r of the ranking is in column r mod `columns`, row r div `columns`."""

    columns: int
    tile: int = Field(description="side of one thumbnail in pixels")


class ItemResult(BaseModel):
    """The result of one item."""

    index: int
    image: str
    kernel: int | None
    rank: int | None = None
    method: str
    alpha: float
    beta: float
    status: Literal["succeeded", "failed", "cancelled"]
    losses: Losses | None = Field(None, description="losses of the delivered PNG")
    losses_float: Losses | None = Field(None, description="losses of `optimized.npy`")
    loss_start: float | None = Field(None, description="total loss of the original image")
    loss_blank: float | None = Field(None, description="total loss of the mean colour")
    metrics: Metrics | None = Field(None, description="metrics of the delivered PNG")
    metrics_float: Metrics | None = Field(None, description="metrics of `optimized.npy`")
    target_met: bool | None = Field(
        None,
        description="whether the delivered PNG meets `target_ssim`, `max_preservation` and `max_invention`; null if "
        "none of them was given",
    )
    iterations: int | None = None
    seconds: float | None = None
    stopped: Stop | None = None
    precision: str | None = Field(
        None,
        description="precision of the solver's evaluations: bfloat16 on devices where it is faster, float32 elsewhere "
        "and where bfloat16 overflowed; losses and metrics are always float32",
    )
    weights: WeightsUsed | None = None
    device: str | None = None
    ranking: list[ActiveKernel] | None = Field(
        None, description="for `POST /activations`: every kernel of the layer, the most active first"
    )
    thumbnails: Thumbnails | None = Field(None, description="for `POST /activations`: layout of `thumbnails.png`")
    gamma: float | None = Field(None, description="for `evidence`: the γ that was used; null where a bound was set")
    note: str | None = Field(None, description="a caveat about the picture, in words")
    reused: bool = Field(False, description="true: copied from a result of the same computation")
    error: Problem | None = None
    artifacts: dict[str, str] = Field(default_factory=dict, description="name → URL path")

    def under(self, root: str) -> Self:
        """The result with its URLs under this path."""
        artifacts = {name: root + path for name, path in self.artifacts.items()}
        return self.model_copy(update={"artifacts": artifacts, "error": self.error and self.error.under(root)})

    @classmethod
    def of(cls, item: Item, request: ExplainRequest, kernel: int | None) -> ItemResult:
        """The result of an item that succeeded, without its measurements."""
        axes = item.model_dump(include={"index", "rank", "method", "alpha", "beta"})
        return cls(**axes, image=request.images[item.image], kernel=kernel, status="succeeded")

    def cancelled(self) -> ItemResult:
        """The result of the same item, cancelled."""
        return self.model_copy(update={"status": "cancelled"})

    def failed(self, error: KernelscopeError) -> ItemResult:
        """The result of the same item, failed with this error."""
        return self.model_copy(update={"status": "failed", "error": error.problem()})
