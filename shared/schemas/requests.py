"""Requests to explain kernels or to rank them: bodies, and the form in which a job stores them."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared.schemas.fields import (
    MAX_IMAGES,
    Base64,
    Deadline,
    ImageName,
    Kernels,
    LossWeights,
    Method,
    Methods,
    Name,
    Sha256,
    StoredKernels,
    WebhookUrl,
    few_images,
    number,
)

OPTIMIZED = ("suppression", "evidence")  # the methods that optimise X̂, with α, β and a solver
NUMBERS = ("iterations", "target_ssim", "max_preservation", "gamma", "max_invention", "deadline_s")


class ExplainOptions(BaseModel):
    """All fields of `POST /explain` except its images."""

    model_config = ConfigDict(extra="forbid")

    model: Name = Field("vgg16", description="network, see `GET /models`")
    layer: Name = Field(
        description="`conv3_3`, `relu3_3` or torchvision's node `features.15`; each means the output after the ReLU"
    )
    kernels: Kernels = Field(description='zero-based indices, or `"top:N"` for the N most active kernels')
    methods: Methods = Field(
        ["suppression"],
        description="explanation methods: `suppression` is Zhuang et al.'s method exactly; `evidence` adds a term that "
        "penalises activation below the layer that the image does not cause; the others are baselines for comparison",
    )
    rule: Literal["zplus", "gamma_epsilon"] = Field(
        "zplus",
        description="rule of `lrp`: z⁺ in every convolution, or γ with ε in the last one; the first layer has z^B",
    )
    scaling: Literal["max", "minmax"] = Field(
        "max",
        description="how `guided_backprop`, `deconvnet` and `lrp` scale an attribution g before it weights X: "
        "g/max|g|, or min-max scaling to [0, 1]",
    )
    alpha: LossWeights = Field([1.0], description="α, weight of the suppression loss L_s of the other kernels")
    beta: LossWeights = Field([1.0], description="β, weight of the regularization L_r towards the mean colour")
    solver: Literal["fast", "reference"] = Field("fast", description="`reference` is the paper's slow procedure")
    effort: Literal["quick", "standard", "thorough"] = Field(
        "standard", description="how many iterations the fast solver may use"
    )
    iterations: int | None = Field(None, ge=1, le=100_000, description="gradient evaluations, instead of `effort`")
    target_ssim: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="minimise the other losses subject to this SSIM of the kernel's map in the PNG; L_p has no weight "
        "then",
    )
    max_preservation: float | None = Field(
        None, gt=0, le=1, description="as `target_ssim`, with an upper bound on L_p in the PNG"
    )
    only_remove: bool = Field(
        False,
        description="X̂ may only remove from the image: each value is between the image's and the mean colour; always "
        "so in `evidence`",
    )
    gamma: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="γ of `evidence`, the weight of L_e: the activation below the layer that X̂ causes and neither the "
        "image nor a blank picture does; default: 0.35 for each ReLU layer below the layer",
    )
    max_invention: float | None = Field(
        None,
        gt=0,
        le=10,
        description="ε of `evidence`: an upper bound on L_e in the PNG, instead of its weight γ",
    )
    deadline_s: Deadline = None
    webhook_url: WebhookUrl = None

    @field_validator(*NUMBERS, mode="before")
    @classmethod
    def _as_json_has_it(cls, value: object) -> object:
        return number(value)

    @model_validator(mode="after")
    def _bounds_need_the_fast_solver(self) -> Self:
        asked = [
            name for name in ("target_ssim", "max_preservation", "max_invention") if getattr(self, name) is not None
        ]
        if asked and self.solver != "fast":
            raise ValueError(f'{" and ".join(asked)} cannot be kept by solver "reference"; use "fast"')
        return self

    @model_validator(mode="after")
    def _gamma_and_its_bound_need_evidence(self) -> Self:
        asked = [name for name in ("gamma", "max_invention") if getattr(self, name) is not None]
        if asked and "evidence" not in self.methods:
            raise ValueError(f'{" and ".join(asked)}: only for method "evidence", which is not among the methods')
        if len(asked) > 1:
            raise ValueError("give gamma or max_invention, not both: L_e has either a weight or a bound")
        return self


class ActivationsOptions(BaseModel):
    """All fields of `POST /activations` except its images."""

    model_config = ConfigDict(extra="forbid")

    model: Name = Field("vgg16", description="network, see `GET /models`")
    layer: Name = Field(description="as in `POST /explain`")
    deadline_s: Deadline = None
    webhook_url: WebhookUrl = None

    @field_validator("deadline_s", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: object) -> object:
        return number(value)


class ImageSource(BaseModel):
    """An image: its bytes, or the SHA-256 of a file that was sent before."""

    model_config = ConfigDict(extra="forbid")

    data: Base64 | None = Field(None, description="base64 of a PNG, JPEG or WebP file")
    sha256: Sha256 | None = Field(None, description="SHA-256 of a file sent before")
    name: ImageName | None = Field(None, description="display name, such as the file's name; no control characters")


Images = Annotated[list[ImageSource], BeforeValidator(few_images), Field(min_length=1, max_length=MAX_IMAGES)]


class ExplainBody(ExplainOptions):
    """The JSON body of `POST /explain`."""

    images: Images


class ActivationsBody(ActivationsOptions):
    """The JSON body of `POST /activations`."""

    images: Images


class ExplainRequest(ExplainOptions):
    """A request as stored with its job, each image by the SHA-256 of its file."""

    model_config = ConfigDict(extra="ignore")  # a later version's jobs can be read

    kernels: StoredKernels = Field(description="as requested; empty where no kernel is explained")
    methods: list[Method | Literal["activations", "survey"]] = Field(["suppression"])  # type: ignore[assignment]
    images: list[Sha256] = Field(
        min_length=1, description="in their order; for a survey, the digests of the image lists of its parts"
    )
    layers: list[str] = Field(
        [], exclude_if=lambda layers: not layers, description="for surveys only; `layer` is the last of them"
    )
    names: list[str | None] = Field([], description="names of the images, in their order; empty if none has a name")

    def name_of(self, image: int) -> str | None:
        """The name of the image with this index, if it has one."""
        return self.names[image] if self.names else None

    @property
    def explains(self) -> bool:
        """Whether X̂ are requested; otherwise kernels are ranked, or surveyed."""
        return self.methods not in (["activations"], ["survey"])

    @property
    def surveys(self) -> bool:
        """Whether the job is a survey."""
        return self.methods == ["survey"]

    def image_of(self, index: int) -> int:
        """The index of the image that the item with this index is about."""
        choices = len(kernel_choices(self.kernels)) if self.explains else 1
        return index // (choices * len(variants(self)))


def variants(request: ExplainRequest) -> list[tuple[str, float, float]]:
    """(method, α, β) of each X̂ that is made of one kernel on one image."""
    found: list[tuple[str, float, float]] = []
    for method in request.methods:
        if method in OPTIMIZED:
            found += product([method], request.alpha, request.beta)
        else:
            found.append((method, request.alpha[0], request.beta[0]))
    return found


def kernel_choices(kernels: list[int] | str) -> list[tuple[int | None, int | None]]:
    """(kernel, rank) of each requested kernel; one of the two is set."""
    if isinstance(kernels, str):
        return [(None, rank) for rank in range(int(kernels.removeprefix("top:")))]
    return [(kernel, None) for kernel in kernels]
