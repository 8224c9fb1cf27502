"""What callers send and receive, and the items that a request becomes."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from itertools import product
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from shared.errors import InvalidRequest, KernelscopeError, Problem, brief

SLICE_ITEMS = 16  # the most items that are claimed, leased and retried together
MAX_IMAGES = 16
MAX_KERNELS = 2048
MAX_VALUES = 64  # of α, of β, and of methods
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
MAX_NAME = 128  # characters of an image's name
CONTROL = r"\x00-\x1f\x7f-\x9f"  # characters, of which a name has none


class Status(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job will not change again."""
        return self not in {Status.QUEUED, Status.RUNNING}


def number(value: object) -> object:
    """A number; one that came as text, as forms and queries have it, is read as JSON would read it.

    Raises:
        ValueError: the text is none, or the value is `true` or `false`.
    """
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value.strip())):
        raise ValueError(f"{brief(value)!r} is not a finite number; write it as 12, -0.5 or 1e-3")
    return json.loads(value) if isinstance(value, str) else value


def _kernels(value: object) -> object:
    wanted = 'give zero-based kernel indices such as [12, 40], or "top:N" for the N most active kernels'
    if isinstance(value, str):
        match = re.fullmatch(r"top:([1-9][0-9]{0,3})", value)
        if not match or int(match[1]) > MAX_KERNELS:
            raise ValueError(f"{brief(value)!r} names no kernels; {wanted}")
        return value
    indices = value if isinstance(value, list) else [value]
    if not indices or len(indices) > MAX_KERNELS:
        raise ValueError(f"{len(indices)} kernels; 1 to {MAX_KERNELS} are taken; {wanted}")
    if any(isinstance(index, str) and index.startswith("top:") for index in indices):
        raise ValueError(f'"top:N" must stand alone; {wanted}')
    if wrong := [index for index in indices if type(index) is not int or index < 0]:
        raise ValueError(f"{brief(repr(wrong[0]))} names no kernel; {wanted}")
    return list(dict.fromkeys(indices))


def _at_most(most: int) -> Callable[[object], object]:
    """A list, or one value for a list of one; its length is looked at before its values are."""

    def counted(value: object) -> object:
        values = value if isinstance(value, list) else [value]
        if len(values) > most:
            raise ValueError(f"{len(values)} values; at most {most} are taken")
        return values

    return counted


def _few_images(value: object) -> object:
    if isinstance(value, list) and len(value) > MAX_IMAGES:
        raise ValueError(f"{len(value)} images; at most {MAX_IMAGES} are taken")
    return value


def _without_repeats(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _base64(value: object) -> object:
    if not isinstance(value, str | memoryview):
        raise ValueError("give the file's bytes as a base64 string")  # noqa: TRY004 - what pydantic turns into a 422
    try:
        return b64decode("".join(value.split()) if isinstance(value, str) else value, validate=True)
    except ValueError:
        raise ValueError("this is not base64; give the file's bytes as a base64 string") from None


Stop = Literal["converged", "budget", "deadline", "cancelled"]
Base64 = Annotated[bytes, BeforeValidator(_base64, json_schema_input_type=str)]
ImageName = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=rf"^[^{CONTROL}]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kernels = Annotated[list[int] | str, BeforeValidator(_kernels)]
AskedKernels = Annotated[list[int] | str, BeforeValidator(lambda value: value if value == [] else _kernels(value))]
LossWeights = Annotated[
    list[Annotated[FiniteFloat, Field(ge=0), BeforeValidator(number)]],
    BeforeValidator(_at_most(MAX_VALUES)),
    AfterValidator(_without_repeats),
    Field(min_length=1, max_length=MAX_VALUES),
]
Method = Literal["suppression", "evidence", "guided_backprop", "deconvnet", "lrp"]
OPTIMIZED = ("suppression", "evidence")  # the methods that optimise X̂, with α, β and a solver
Methods = Annotated[
    list[Method],
    BeforeValidator(_at_most(MAX_VALUES)),
    AfterValidator(_without_repeats),
    Field(min_length=1, max_length=MAX_VALUES),
]
Name = Annotated[str, Field(max_length=64)]  # of a network or a layer


Deadline = Annotated[
    float | None,
    Field(
        gt=0,
        le=30 * 86400,
        description="seconds from now after which X̂ is delivered as far as it is, and what has not begun fails",
    ),
]
WebhookUrl = Annotated[
    str | None,
    Field(
        max_length=2048,
        pattern=r"^https?://[^\s]+$",
        description="a public address that is told once the job has ended, see docs/webhooks.md",
    ),
]
NUMBERS = ("iterations", "target_ssim", "max_preservation", "gamma", "max_invention", "deadline_s")


class ExplainOptions(BaseModel):
    """Everything of a request but its images."""

    model_config = ConfigDict(extra="forbid")

    model: Name = Field("vgg16", description="network, see `GET /models`")
    layer: Name = Field(description="`conv3_3`, `relu3_3` or torchvision's node `features.15`; always after the ReLU")
    kernels: Kernels = Field(description='zero-based indices, or `"top:N"` for the N most active kernels')
    methods: Methods = Field(
        ["suppression"],
        description="how the explanation is made: `suppression` is Zhuang et al.'s method exactly, `evidence` the same "
        "with one more term, so that X̂ excites nothing that the image does not; the others are what both are compared "
        "with",
    )
    rule: Literal["zplus", "gamma_epsilon"] = Field(
        "zplus", description="of `lrp`: z⁺ in every convolution, or γ and in the last one ε; z^B in the first"
    )
    scaling: Literal["max", "minmax"] = Field(
        "max",
        description="how an attribution g weighs X in `guided_backprop`, `deconvnet` and `lrp`: g/max|g|, or g brought "
        "to [0, 1]",
    )
    alpha: LossWeights = Field([1.0], description="α, the weight of the suppression of the other kernels")
    beta: LossWeights = Field([1.0], description="β, the weight of the pull to the mean colour")
    solver: Literal["fast", "reference"] = Field("fast", description="`reference` is the paper's slow procedure")
    effort: Literal["quick", "standard", "thorough"] = Field("standard", description="how long the fast solver tries")
    iterations: int | None = Field(None, ge=1, le=100_000, description="gradient evaluations instead of `effort`")
    target_ssim: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="suppress and empty as far as this SSIM of the kernel's map in the PNG allows, and weigh no L_p",
    )
    max_preservation: float | None = Field(None, gt=0, le=1, description="the same with a bound on L_p in the PNG")
    only_remove: bool = Field(
        False,
        description="X̂ may only take away from the image: each value lies between the image's and the mean colour; "
        "`evidence` always does so",
    )
    gamma: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="of `evidence`: γ, the weight of L_e, which is the activation below the layer that X̂ causes and "
        "neither the image nor a blank picture does; unless given 0.35 for each ReLU layer below the layer",
    )
    max_invention: float | None = Field(
        None,
        gt=0,
        le=10,
        description="of `evidence`: ε, the most that L_e may be in the PNG, instead of a weight",
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
    def _the_term_is_of_evidence(self) -> Self:
        """γ and ε belong to `evidence`, which has one of them."""
        asked = [name for name in ("gamma", "max_invention") if getattr(self, name) is not None]
        if asked and "evidence" not in self.methods:
            raise ValueError(f'{" and ".join(asked)}: of method "evidence", which is not among the methods asked for')
        if len(asked) > 1:
            raise ValueError("gamma and max_invention: give one, a weight of L_e or a bound of it")
        return self


class ActivationsOptions(BaseModel):
    """Everything of `POST /activations` but its images."""

    model_config = ConfigDict(extra="forbid")

    model: Name = Field("vgg16", description="network, see `GET /models`")
    layer: Name = Field(description="as of `POST /explain`")
    deadline_s: Deadline = None
    webhook_url: WebhookUrl = None

    @field_validator("deadline_s", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: object) -> object:
        return number(value)


class ImageSource(BaseModel):
    """An image by its bytes, or by the SHA-256 of bytes that were sent before."""

    model_config = ConfigDict(extra="forbid")

    data: Base64 | None = Field(None, description="base64 of a PNG, JPEG or WebP file")
    sha256: Sha256 | None = Field(None, description="SHA-256 of a file sent before")
    name: ImageName | None = Field(
        None, description="what people call it, such as the file's name; no control characters"
    )


Images = Annotated[list[ImageSource], BeforeValidator(_few_images), Field(min_length=1, max_length=MAX_IMAGES)]


class ExplainBody(ExplainOptions):
    """The JSON body of `POST /explain`."""

    images: Images


class ActivationsBody(ActivationsOptions):
    """The JSON body of `POST /activations`."""

    images: Images


class ExplainRequest(ExplainOptions):
    """A request as the job keeps it: images by the SHA-256 of the bytes that were sent."""

    model_config = ConfigDict(extra="ignore")  # a later version's jobs can be read

    kernels: AskedKernels = Field(description="as they were asked for; empty where none is explained")
    methods: list[Method | Literal["activations", "survey"]] = Field(["suppression"])  # type: ignore[assignment]
    images: list[Sha256] = Field(min_length=1, description="of a survey its parts, each by the list of its images")
    layers: list[str] = Field(
        [], exclude_if=lambda layers: not layers, description="of a survey alone; `layer` is the last of them"
    )
    names: list[str | None] = Field([], description="of the images, in their order; empty where none was given")

    def name_of(self, image: int) -> str | None:
        """Of the image of that number, where it has a name."""
        return self.names[image] if self.names else None

    @property
    def explains(self) -> bool:
        """Whether X̂ are asked for; else kernels are ranked, or surveyed."""
        return self.methods not in (["activations"], ["survey"])

    @property
    def surveys(self) -> bool:
        """Whether it is of a survey."""
        return self.methods == ["survey"]

    def image_of(self, index: int) -> int:
        """The number of the image that the item of that index is about."""
        choices = len(_choices(self.kernels)) if self.explains else 1
        return index // (choices * len(variants(self)))


class Item(BaseModel):
    """One X̂ to make, one image whose kernels are to be ranked, or one part of a survey.

    Of an X̂'s `kernel` and `rank` one is set: rank r is the (r+1)-th most active kernel on the image.
    """

    index: int
    image: int
    kernel: int | None
    rank: int | None
    method: str
    alpha: float
    beta: float


class Losses(BaseModel):
    """The terms of L = L_p + α·L_s + β·L_r (Formulas 1-4)."""

    preservation: float
    suppression: float
    regularization: float
    total: float


class Metrics(BaseModel):
    """How X̂ fares when it is fed back through the network."""

    ssim: float | None = Field(description="SSIM of F̂_i against F_i; null on a 1×1 map")
    ssim_window: int | None = Field(description="side of the SSIM window: 11, or the largest odd size that fits")
    ssim_paper: float | None = Field(description="SSIM with zero padding and data range 1 on raw activations")
    mse_others: float = Field(description="mean of F̂_j² over j≠i: the paper's MSE (R.)")
    mse_others_before: float = Field(description="the same of the original image")
    mse_selected: float = Field(description="mean of (F̂_i − F_i)²")
    leakage: float = Field(description="Σ_{j≠i}‖F̂_j‖₁ / Σ_{j≠i}‖F_j‖₁")
    sparsity: float = Field(description="share of pixels equal to the mean colour in 8 bits")
    ssim_grey: float | None = Field(
        None,
        description="SSIM of the selected kernel's map of X̂ made grey against F_i: how much of what it sees is shape; "
        "null on a 1×1 map, of a network of grey, and in results of before it was measured",
    )
    invention: float | None = Field(
        None,
        description="activation below the layer that X̂ causes beyond the image's: the mean over the ReLU layers below "
        "of Σ max(ĥ − h, 0) / Σ h; 0 where there is none below, null in results of before it was measured",
    )
    invention_by_layer: dict[str, float] | None = Field(None, description="the same of each layer below")
    invention_beyond_blank: float | None = Field(
        None, description="the same beyond the larger of the image's and a blank picture's: L_e, as `evidence` has it"
    )


Channels = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=3)]


class Preprocessing(BaseModel):
    """What a network is fed: (value − mean) / std of each channel, where a pixel's value has this range."""

    model_config = ConfigDict(frozen=True)

    mean: Channels = Field(description="by channel, in the order of the channels: three, or one of a network of grey")
    std: Channels = Field(description="the same")
    range: Literal["0-1", "0-255"] = Field("0-1", description="of a pixel's value before mean and std")
    order: Literal["rgb", "bgr", "grey"] = Field("rgb", description="of the channels; grey: there is one")
    resize: Literal["squash", "crop"] = Field(
        "squash", description="how an image takes the shape of the network's input: its middle, by crop"
    )
    assumed: bool = Field(False, description="whether it is ImageNet's because nobody has said what it is")

    @model_validator(mode="after")
    def _of_channels(self) -> Self:
        if (len(self.mean), len(self.std)) != ((1, 1) if self.order == "grey" else (3, 3)):
            raise ValueError("mean and std have a number for each channel: one of grey, three of colours")
        return self

    def __str__(self) -> str:
        """For people."""
        mean, std = (" ".join(f"{one:g}" for one in numbers) for numbers in (self.mean, self.std))
        told = f"{self.order.upper()} from {self.range.replace('-', ' to ')}, mean {mean}, std {std}"
        told = f"{told}, the middle of the image" if self.resize == "crop" else told
        return f"{told} (assumed: ImageNet's)" if self.assumed else told


class WeightsUsed(BaseModel):
    """Which network computed a result."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(description="the weights file's name")
    sha256: str = Field(description="SHA-256 of the weights file")
    architecture: str | None = Field(None, description="torchvision's name of the network that has these weights")
    preprocessing: Preprocessing | None = Field(None, description="what the network was fed")


class ActiveKernel(BaseModel):
    """How active a kernel is on an image."""

    kernel: int
    mean: float = Field(description="mean activation over its feature map: what kernels are ranked by")
    max: float = Field(description="highest activation")
    active: float = Field(description="share of positions where the activation is above zero")


class Thumbnails(BaseModel):
    """How `thumbnails.png` is laid out: entry r of the ranking is in column r mod `columns`, row r div `columns`."""

    columns: int
    tile: int = Field(description="side of one thumbnail in pixels")


class ItemResult(BaseModel):
    """What became of one item."""

    index: int
    image: str
    kernel: int | None
    rank: int | None = None
    method: str
    alpha: float
    beta: float
    status: Literal["succeeded", "failed", "cancelled"]
    losses: Losses | None = Field(None, description="of the delivered PNG")
    losses_float: Losses | None = Field(None, description="of `optimized.npy`")
    loss_start: float | None = Field(None, description="total loss of the original image")
    loss_blank: float | None = Field(None, description="total loss of the mean colour")
    metrics: Metrics | None = Field(None, description="of the delivered PNG")
    metrics_float: Metrics | None = Field(None, description="of `optimized.npy`")
    target_met: bool | None = Field(
        None,
        description="whether the delivered PNG keeps `target_ssim`, `max_preservation` and `max_invention`; null if "
        "none was asked",
    )
    iterations: int | None = None
    seconds: float | None = None
    stopped: Stop | None = None
    precision: str | None = Field(
        None,
        description="of the solver's evaluations: bfloat16 where the device gains from it, float32 where not or where "
        "bfloat16 overflowed; losses and metrics are always float32",
    )
    weights: WeightsUsed | None = None
    device: str | None = None
    ranking: list[ActiveKernel] | None = Field(None, description="of `POST /activations`: every kernel of the layer")
    thumbnails: Thumbnails | None = Field(None, description="of `POST /activations`")
    gamma: float | None = Field(None, description="of `evidence`: γ that was used; null where a bound was")
    note: str | None = Field(None, description="what a reader should know before believing the picture, in words")
    reused: bool = Field(False, description="the same work had been done before: this is its result")
    error: Problem | None = None
    artifacts: dict[str, str] = Field(default_factory=dict, description="name → URL path")

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        artifacts = {name: root + path for name, path in self.artifacts.items()}
        return self.model_copy(update={"artifacts": artifacts, "error": self.error and self.error.under(root)})

    @classmethod
    def of(cls, item: Item, request: ExplainRequest, kernel: int | None) -> ItemResult:
        """The result of an item that succeeded, still without its numbers."""
        axes = item.model_dump(include={"index", "rank", "method", "alpha", "beta"})
        return cls(**axes, image=request.images[item.image], kernel=kernel, status="succeeded")

    def cancelled(self) -> ItemResult:
        """The same item, cancelled."""
        return self.model_copy(update={"status": "cancelled"})

    def failed(self, error: KernelscopeError) -> ItemResult:
        """The same item, failed."""
        return self.model_copy(update={"status": "failed", "error": error.problem()})


class Progress(BaseModel):
    """How far a job is."""

    completed: int
    total: int | None = Field(description='null until the worker has resolved "top:N"')
    failed: int
    iteration: int | None = Field(
        None, description="gradient evaluations done of items that run now: of the part of the job that spoke last"
    )
    budget: int | None = Field(None, description="the most evaluations that they may take")
    loss: float | None = Field(None, description="their mean total loss now")
    fraction: float = Field(0.0, ge=0, le=1, description="of the whole job's work that is done; it never goes back")
    seconds_left: float | None = Field(None, description="an estimate by the pace so far; null where there is none yet")


class JobSummary(BaseModel):
    """A job as `GET /jobs` lists it."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime
    attempt: int = Field(description="the most times that a part of the job was begun; above 1: a worker died")
    queue_position: int | None = Field(
        description="its place by the time since when it waits, from 1; callers take turns, so that one who has little "
        "in the queue is served before that; null once it runs"
    )
    waiting_for: str | None = Field(
        None, description="what must be there before the job can go on; null: nothing that is not"
    )
    queue_seconds: float | None = Field(None, description="an estimate of how long it will wait; null where unknown")
    request: ExplainRequest
    progress: Progress
    failed_items: int
    links: dict[str, str]

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        return self.model_copy(update={"links": {name: root + path for name, path in self.links.items()}})


class Page(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next_cursor: str | None = Field(description="for the next page; null: this was the last")


class ResultsPage(BaseModel):
    """Results of a job, by the item's index."""

    results: list[ItemResult]
    next_cursor: str | None = Field(description="for the next page; null: these were the last that there are so far")


class Job(JobSummary):
    """A job as `GET /jobs/{id}` tells it."""

    results: list[ItemResult] | None = Field(
        description="null of a job of more than 64 items: read them page by page at `links.results`"
    )
    error: Problem | None

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        results = None if self.results is None else [result.under(root) for result in self.results]
        error = self.error and self.error.under(root)
        return super().under(root).model_copy(update={"results": results, "error": error})


class WholeJob(Job):
    """A job with all its results."""

    results: list[ItemResult]


class NewDataSet(BaseModel):
    """What a data set is to be."""

    model_config = ConfigDict(extra="forbid")

    name: ImageName = Field(description="for people")


class OddFile(BaseModel):
    """A file that was not taken, and why."""

    name: str
    reason: str


class DataSetImage(BaseModel):
    """An image of a data set."""

    name: str = Field(description="its path in the folder or archive that it came in")
    sha256: str


class DataSet(BaseModel):
    """Many images under one name."""

    id: str
    name: str
    created_at: datetime
    public: bool = Field(description="everybody may use it")
    mine: bool = Field(description="yours, to add to and to delete")
    images: int = Field(description="different ones")
    refused: int = Field(description="files that were not taken")
    odd: list[OddFile] = Field(description="these, the first hundred of them")
    links: dict[str, str]

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        return self.model_copy(update={"links": {name: root + path for name, path in self.links.items()}})


class AddedImages(BaseModel):
    """What became of an upload."""

    added: list[DataSetImage]
    odd: list[OddFile] = Field(description="files that were not taken")
    dataset: DataSet


class DataSetImages(BaseModel):
    """Images of a data set, in the order in which they came."""

    images: list[DataSetImage]
    next_cursor: str | None = Field(description="for the next page; null: these were the last")


def plan(request: ExplainRequest, max_items: int) -> list[list[Item]]:
    """One item for every image × kernel × method × α × β, cut into slices of at most 16.

    α and β are those of suppression and evidence: of another method there is one item, whose loss is by the first of
    each.

    Raises:
        InvalidRequest: more than `max_items` items.
    """
    choices = _choices(request.kernels) if request.explains else [(None, None)]
    axes = (range(len(request.images)), choices, variants(request))
    count = prod(map(len, axes))
    if count > max_items:
        raise InvalidRequest(
            f"the request makes {count} items (image × kernel × method × α × β); at most {max_items} are taken"
        )
    items = [
        Item(index=index, image=image, kernel=kernel, rank=rank, method=method, alpha=alpha, beta=beta)
        for index, (image, (kernel, rank), (method, alpha, beta)) in enumerate(product(*axes))
    ]
    return [items[start : start + SLICE_ITEMS] for start in range(0, len(items), SLICE_ITEMS)]


def variants(request: ExplainRequest) -> list[tuple[str, float, float]]:
    """(method, α, β) of each X̂ that is made of one kernel on one image."""
    found: list[tuple[str, float, float]] = []
    for method in request.methods:
        if method in OPTIMIZED:
            found += product([method], request.alpha, request.beta)
        else:
            found.append((method, request.alpha[0], request.beta[0]))
    return found


def _choices(kernels: list[int] | str) -> list[tuple[int | None, int | None]]:
    """(kernel, rank) of each kernel that is asked for; one of the two is set."""
    if isinstance(kernels, str):
        return [(None, rank) for rank in range(int(kernels.removeprefix("top:")))]
    return [(kernel, None) for kernel in kernels]
