"""Surveys, and what they found out about layers and kernels."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from shared.schemas.fields import Id, Name, WebhookUrl, number, without_repeats
from shared.schemas.jobs import Status
from shared.schemas.networks import Layer, WeightsUsed

MOST_LAYERS = 512
MOST_KERNELS = 64  # explained by one request
TOP_IMAGES = 16  # stored for each kernel
SHOWN = 9  # top images of a kernel that are explained by default
URLS = ("crop", "picture", "whole", "links")  # fields that contain URLs

LayerNames = Annotated[list[Name], AfterValidator(without_repeats)]
KernelIndices = Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(without_repeats)]


def _under(value: Any, root: str, *, url: bool = False) -> Any:
    """A copy with its URLs under this path."""
    if isinstance(value, BaseModel):
        fields = {name: _under(getattr(value, name), root, url=name in URLS) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, list):
        return [_under(one, root) for one in value]
    if isinstance(value, dict):
        return {name: _under(one, root, url=url) for name, one in value.items()}
    return root + value if url and isinstance(value, str) else value


class _WithUrls(BaseModel):
    def under(self, root: str) -> Self:
        """A copy with its URLs under this path."""
        found: Self = _under(self, root)
        return found


class NewSurvey(BaseModel):
    """The JSON body of `POST /surveys`."""

    model_config = ConfigDict(extra="forbid")

    dataset: Id = Field(description="a data set of yours, or a public one, see `GET /datasets`")
    model: Name = Field("vgg16", description="network, see `GET /models`")
    layers: LayerNames | None = Field(
        None,
        min_length=1,
        max_length=MOST_LAYERS,
        description="as in `POST /explain`; default: the layers in `GET /models` that the weights cover",
    )
    webhook_url: WebhookUrl = None


class Survey(_WithUrls):
    """What every kernel of some layers responds to in the images of a data set."""

    id: str = Field(description="also the id of its job, while that exists")
    dataset: str
    dataset_name: str
    model: str
    layers: list[str]
    images: int = Field(description="number of images in the survey")
    surveyed: int = Field(description="number of images processed so far")
    status: Status
    created_at: datetime
    public: bool = Field(description="whether everybody may read it")
    mine: bool
    weights: WeightsUsed | None = Field(description="the weights in use; null before the first part is processed")
    links: dict[str, str]


class KernelSummary(BaseModel):
    """A kernel of a layer, in a survey."""

    kernel: int
    mean: float = Field(description="mean activation over all positions of all images")
    max: float = Field(description="highest activation; 0 where no image activates the kernel")
    active: float = Field(description="fraction of positions at which the kernel is active")
    active_images: float = Field(description="fraction of images in which the kernel is active")
    crop: str | None = Field(
        description="URL of the part in the receptive field of the image that activates it most; null if none does"
    )
    picture: str | None = Field(None, description="URL of the same part of X̂ of that image; null before X̂ is made")
    consistency: float | None = Field(None, description="consistency of its X̂, see docs/evidence.md")
    colour: float | None = Field(
        None, description="how much the kernel's map depends on colour: 1 − SSIM after X̂ is converted to greyscale"
    )


class LayerKernels(_WithUrls):
    """All kernels of a layer, in their order."""

    survey: Survey
    surveys: list[Survey] = Field(description="all surveys of this layer that you may read, newest first")
    layer: Layer
    kernels: list[KernelSummary]


class TopImage(BaseModel):
    """One of the images that activate a kernel most, and the position at which it does."""

    rank: int = Field(description="from 0")
    image: str = Field(description="SHA-256")
    name: str
    activation: float
    row: int = Field(description="row of the position in the feature map")
    column: int
    box: tuple[int, int, int, int] = Field(
        description="receptive field of the position: left, top, right, bottom in input pixels, clipped to the image"
    )
    crop: str = Field(description="URL of this part of the image, a WebP file")
    picture: str | None = Field(
        None, description="URL of the same part of X̂, its contrast stretched; null before X̂ is made"
    )
    whole: str | None = Field(
        None, description="URL of a figure of X and X̂ with the feature maps of both and the measurements"
    )
    ssim: float | None = Field(None, description="SSIM of the kernel's map on X̂")
    error: str | None = Field(None, description="why there is no X̂")


class Bin(BaseModel):
    """A bin of a histogram."""

    start: float = Field(description="lowest activation in the bin")
    end: float | None = Field(description="upper bound, exclusive; null for the last bin")
    images: int = Field(description="number of images whose highest activation is in the bin")


class Similar(BaseModel):
    """Another kernel of the layer that the same images activate."""

    kernel: int
    correlation: float = Field(description="correlation of the two kernels' highest activations over all images")
    crop: str | None


class Score(BaseModel):
    """A mean with its standard error."""

    value: float
    error: float | None = Field(description="standard error by the jackknife over images; null for a single value")


class Explanation(BaseModel):
    """The X̂ of a kernel's top images that have been made so far."""

    job: str
    status: Status
    method: str
    effort: str
    made: int = Field(description="number of X̂ made so far")
    of: int = Field(description="number of X̂ requested")
    rivals: str | None = Field(None, description="id of the job that also explains the most active other kernels")
    note: str | None = Field(None, description="a caveat about the pictures, in words")
    consistency: Score | None = Field(None, description="whether the kernel responds to the same thing in all images")
    discrimination: Score | None = Field(
        None,
        description="how often X̂ is more similar to the same kernel's X̂ of another image than to another kernel's X̂ of "
        "the same image",
    )
    colour: Score | None = Field(
        None,
        description="how much the kernel's map depends on colour: 1 − SSIM after X̂ is converted to greyscale; 0: on "
        "shape alone",
    )
    links: dict[str, str]


class KernelPage(_WithUrls):
    """All that is known about one kernel."""

    network: str
    layer: Layer
    kernel: int
    survey: Survey
    surveys: list[Survey] = Field(description="all surveys of this layer that you may read, newest first")
    mean: float
    max: float
    active: float
    active_images: float
    histogram: list[Bin]
    top: list[TopImage]
    similar: list[Similar]
    explanation: Explanation | None = Field(description="null before you, or others with your key, have asked for one")


class ExplainKernels(BaseModel):
    """The JSON body of `POST /surveys/{id}/explanations`."""

    model_config = ConfigDict(extra="forbid")

    layer: Name
    kernels: KernelIndices = Field(min_length=1, max_length=MOST_KERNELS)
    images: int = Field(SHOWN, ge=1, le=TOP_IMAGES, description="how many of each kernel's top images to explain")
    effort: Literal["quick", "standard", "thorough"] = "quick"
    rivals: bool = Field(
        False, description="also explain the two most active other kernels on these images; `discrimination` needs it"
    )

    @field_validator("images", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: object) -> object:
        return number(value)
