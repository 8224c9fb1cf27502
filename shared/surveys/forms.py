"""What callers send and receive about surveys and kernels."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from shared.catalogue import Layer
from shared.schemas import Name, Status, WebhookUrl, WeightsUsed, number
from shared.surveys.tally import TOP

MOST_LAYERS = 512
MOST_KERNELS = 64  # that are explained by one request
SHOWN = 9  # top images of a kernel that are explained unless said otherwise

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Names = Annotated[list[Name], AfterValidator(lambda names: list(dict.fromkeys(names)))]
Index = Annotated[int, Field(ge=0)]
Kernels = Annotated[list[Index], AfterValidator(lambda kernels: list(dict.fromkeys(kernels)))]


URLS = ("crop", "picture", "whole", "links")  # fields that have some


def under(value: Any, root: str, *, url: bool = False) -> Any:
    """The same with the URLs in it under this path."""
    if isinstance(value, BaseModel):
        fields = {name: under(getattr(value, name), root, url=name in URLS) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, list):
        return [under(one, root) for one in value]
    if isinstance(value, dict):
        return {name: under(one, root, url=url) for name, one in value.items()}
    return root + value if url and isinstance(value, str) else value


class NewSurvey(BaseModel):
    """The JSON body of `POST /surveys`."""

    model_config = ConfigDict(extra="forbid")

    dataset: Id = Field(description="a data set of yours, or a public one, see `GET /datasets`")
    model: Name = Field("vgg16", description="network, see `GET /models`")
    layers: Names | None = Field(
        None,
        min_length=1,
        max_length=MOST_LAYERS,
        description="as of `POST /explain`; unless given, those of `GET /models` that the weights reach",
    )
    webhook_url: WebhookUrl = None


class Survey(BaseModel):
    """What every kernel of some layers responds to in the images of a data set."""

    id: str = Field(description="also that of its job, as long as there is one")
    dataset: str
    dataset_name: str
    model: str
    layers: list[str]
    images: int = Field(description="to be looked at")
    surveyed: int = Field(description="that have been looked at so far")
    status: Status
    created_at: datetime
    public: bool = Field(description="everybody may read it")
    mine: bool
    weights: WeightsUsed | None = Field(description="which network looked; null before it has")
    links: dict[str, str]

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        found: Self = under(self, root)
        return found


class KernelSummary(BaseModel):
    """A kernel of a layer, by what a survey knows of it."""

    kernel: int
    mean: float = Field(description="activation over all positions of all images")
    max: float = Field(description="highest activation; 0 where no image activates it")
    active: float = Field(description="share of positions at which it is active")
    active_images: float = Field(description="share of images that have one")
    crop: str | None = Field(description="URL of what it sees of the image that activates it most; null: none does")
    picture: str | None = Field(None, description="URL of X̂ of that image, cut the same; null before it is made")
    consistency: float | None = Field(None, description="of its X̂, once they are made: see docs/evidence.md")
    colour: float | None = Field(None, description="how much of the map goes when X̂ loses its colour: 1 − SSIM")


class LayerKernels(BaseModel):
    """All kernels of a layer, in their order."""

    survey: Survey
    surveys: list[Survey] = Field(description="all that you may read and that have this layer, the newest first")
    layer: Layer
    kernels: list[KernelSummary]

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        found: Self = under(self, root)
        return found


class TopImage(BaseModel):
    """An image that activates a kernel most, and where."""

    rank: int = Field(description="from 0")
    image: str = Field(description="SHA-256")
    name: str
    activation: float
    row: int = Field(description="of the position in the feature map")
    column: int
    box: tuple[int, int, int, int] = Field(
        description="what that position sees: left, top, right, bottom in input pixels, cut at the edge"
    )
    crop: str = Field(description="URL of this part of the image, a WebP file")
    picture: str | None = Field(
        None, description="URL of the same part of X̂, its contrast stretched; null before it is made"
    )
    whole: str | None = Field(
        None, description="URL of a figure: all of X and X̂, the maps before and after, the numbers"
    )
    ssim: float | None = Field(None, description="of the kernel's map on X̂")
    error: str | None = Field(None, description="why there is no X̂")


class Bin(BaseModel):
    """Of a histogram."""

    start: float = Field(description="activations from here")
    end: float | None = Field(description="to below here; null: the last")
    images: int = Field(description="whose highest activation is between them")


class Similar(BaseModel):
    """Another kernel of the layer that the same images activate."""

    kernel: int
    correlation: float = Field(description="of both kernels' highest activations, over all images")
    crop: str | None


class Score(BaseModel):
    """A mean with its standard error."""

    value: float
    error: float | None = Field(description="standard error by the jackknife over images; null of a single value")


class Explanation(BaseModel):
    """The X̂ of a kernel's top images, as far as they are made."""

    job: str
    status: Status
    method: str
    effort: str
    made: int = Field(description="X̂ that there are")
    of: int = Field(description="that were asked for")
    rivals: str | None = Field(None, description="the job that explains the most active other kernels too")
    note: str | None = Field(None, description="what a reader should know before believing the pictures")
    consistency: Score | None = Field(None, description="whether the kernel sees the same thing in all of them")
    discrimination: Score | None = Field(
        None, description="how often its X̂ is more like its own of another image than like another kernel's of the same"
    )
    colour: Score | None = Field(
        None, description="how much of the kernel's map goes when X̂ loses its colour: 1 − SSIM; 0: shape alone"
    )
    links: dict[str, str]


class KernelPage(BaseModel):
    """What is known of one kernel."""

    network: str
    layer: Layer
    kernel: int
    survey: Survey
    surveys: list[Survey] = Field(description="all that you may read and that have this layer, the newest first")
    mean: float
    max: float
    active: float
    active_images: float
    histogram: list[Bin]
    top: list[TopImage]
    similar: list[Similar]
    explanation: Explanation | None = Field(description="null before anybody with your key has asked for one")

    def under(self, root: str) -> Self:
        """The same with URLs under this path."""
        found: Self = under(self, root)
        return found


class ExplainKernels(BaseModel):
    """The JSON body of `POST /surveys/{id}/explanations`."""

    model_config = ConfigDict(extra="forbid")

    layer: Name
    kernels: Kernels = Field(min_length=1, max_length=MOST_KERNELS)
    images: int = Field(SHOWN, ge=1, le=TOP, description="how many of each kernel's top images")
    effort: Literal["quick", "standard", "thorough"] = "quick"
    rivals: bool = Field(
        False, description="also explain the two most active kernels of these images, which `discrimination` needs"
    )

    @field_validator("images", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: object) -> object:
        return number(value)
