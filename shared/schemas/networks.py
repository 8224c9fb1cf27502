"""Networks: their layers, what they take as input, and the weights that computed a result."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Size = int | tuple[int, int]
Channels = Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=3)]


class Frame(NamedTuple):
    """A network's input: height and width in pixels, and channels (3: RGB, 1: grey)."""

    height: int
    width: int
    channels: int = 3


def frame_of(size: Size, channels: int) -> Frame:
    """The frame of a size, which is the side of a square, or height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return Frame(height, width, channels)


class Preprocessing(BaseModel):
    """How pixels become the network's input: (value − mean) / std per channel, where `range` is that of the values."""

    model_config = ConfigDict(frozen=True)

    mean: Channels = Field(description="per channel, in the order of the channels: three values, or one for grey")
    std: Channels = Field(description="as `mean`")
    range: Literal["0-1", "0-255"] = Field("0-1", description="range of pixel values before mean and std")
    order: Literal["rgb", "bgr", "grey"] = Field("rgb", description="order of the channels; `grey` has one channel")
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="how an image is brought to the shape of the network's input; `crop` takes the centre of the image",
    )
    assumed: bool = Field(False, description="true: nothing was specified, so ImageNet's values are used")

    @model_validator(mode="after")
    def _of_channels(self) -> Self:
        if (len(self.mean), len(self.std)) != ((1, 1) if self.order == "grey" else (3, 3)):
            raise ValueError("mean and std need a number for each channel: one for grey, three for colours")
        return self

    def __str__(self) -> str:
        """A description for people."""
        mean, std = (" ".join(f"{one:g}" for one in numbers) for numbers in (self.mean, self.std))
        text = f"{self.order.upper()} from {self.range.replace('-', ' to ')}, mean {mean}, std {std}"
        text = f"{text}, the centre of the image" if self.resize == "crop" else text
        return f"{text} (assumed: ImageNet's)" if self.assumed else text


class WeightsUsed(BaseModel):
    """The weights that computed a result."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(description="name of the weights file")
    sha256: str = Field(description="SHA-256 of the weights file")
    architecture: str | None = Field(None, description="torchvision's name of the architecture")
    preprocessing: Preprocessing | None = Field(None, description="the preprocessing of the input")


class Layer(BaseModel):
    """A layer whose kernels can be explained: a node of the network that has feature maps."""

    name: str = Field(
        description="as in the papers: `conv3_3`, `fire5`; for others torchvision's name: `layer3.1.relu_1`"
    )
    node: str = Field(description="torchvision's node: `features.15`")
    kernels: int = Field(description="number of kernels")
    height: int = Field(description="height of a feature map, in positions")
    width: int = Field(description="width of a feature map, in positions")
    receptive_field: int = Field(description="receptive field of one position: side of a square of input pixels")
    stride: int = Field(description="input pixels between neighbouring positions")
    middle: float | None = Field(
        None,
        description="centre of the first position's receptive field: input pixels from the edge, where 0.5 is the "
        "centre of the first pixel",
    )
    signed: bool = Field(False, description="whether feature maps may be negative; they are not after a ReLU")
    block: str = Field("", description="the block of the network that contains the layer")
    without: dict[str, str] = Field(
        default_factory=dict,
        description="baselines that cannot be applied, as they have no rule for an operation below the layer; with the "
        "reason",
    )


class Input(BaseModel):
    """The input of a network."""

    input_size: Size = Field(description="side of a square in pixels, or [height, width]")
    channels: int = Field(3, description="3, or 1 for a greyscale network")

    @property
    def frame(self) -> Frame:
        """Size and channels together."""
        return frame_of(self.input_size, self.channels)


class LayerInfo(Layer):
    """A layer, and whether the workers' weights cover it."""

    available: bool | None = Field(description="null while no worker is connected")


class ModelInfo(Input):
    """A network, and what can be explained of it at present."""

    name: str
    title: str
    available: bool | None = Field(description="null while no worker is connected")
    architecture: str | None = Field(None, description="torchvision's name of the architecture")
    reason: str = Field(description="where the weights are from, or why the network cannot be explained")
    preprocessing: Preprocessing | None = Field(
        None, description="preprocessing of the input; null where no worker has weights"
    )
    weights: str | None = Field(description="name of the weights file")
    weights_sha256: str | None = Field(description="SHA-256 of the weights file, known once a worker has loaded it")
    weights_refused: list[str] = Field(
        default_factory=list,
        description="files in the weights folder that cannot be used, and why: those of this network, and those that "
        "fit no network",
    )
    layers: list[LayerInfo] = Field(description="the main layers")
    nodes: list[LayerInfo] = Field(
        default_factory=list,
        description="all other nodes that have feature maps; only in the response about a single network",
    )
