"""What a runner asks, what an engine answers, and what an engine needs of a device.

No torch here, so that a device can be a double.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.catalogue import Network
from shared.errors import KernelscopeError
from shared.images import Frame
from shared.schemas import Losses, Metrics, Stop, WeightsUsed
from shared.surveys.parts import Seen
from shared.workers import NetworkState

log = logging.getLogger(__name__)

# γ/D, the weight of what one ReLU layer below has that the image does not cause. No fingerprint knows it: a change
# of it raises the solvers' VERSION.
PER_LAYER = 0.35
SURVEYED = 4  # pictures of a survey that the engine looks at between two steps of its batches
MOST_LAYERS = 16  # VGG-19 has 15 below its last; 5.6 holds X̂ in a network of any depth, and 20 leaves it at X

Picture = NDArray[Any]  # (H, W, 3), of grey (H, W, 1): of 0 to 255 in uint8 or, of deep grey, float32
Maps = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Question:
    """What does this kernel see in this picture?"""

    model: str
    layer: str
    picture: Picture  # of the network's frame
    kernel: int
    alpha: float
    beta: float
    solver: str = "fast"
    effort: str = "standard"
    iterations: int | None = None
    target_ssim: float | None = None
    max_preservation: float | None = None
    only_remove: bool = False
    gamma: float | None = None  # of evidence; by the layer's depth where neither this nor a bound is given
    max_invention: float | None = None
    method: str = "suppression"
    rule: str = "zplus"
    scaling: str = "max"

    @property
    def bounded(self) -> bool:
        """Whether the kernel's map is to be kept within a bound."""
        return self.target_ssim is not None or self.max_preservation is not None

    @property
    def removing(self) -> bool:
        """Whether X̂ may only take away from the image."""
        return self.only_remove or self.method == "evidence"

    def weight(self, depth: int) -> float:
        """γ of evidence, where so many layers are watched below: 0.35 for each, as for 16 at most, unless asked."""
        if self.gamma is not None:
            return self.gamma
        return 0.0 if self.max_invention is not None else PER_LAYER * min(depth, MOST_LAYERS)

    @property
    def kind(self) -> tuple[str, ...]:
        """What questions must share to be answered in one batch."""
        return self.model, self.layer, self.method, self.solver

    def fingerprint(self, weights: WeightsUsed, version: str) -> str:
        """The same for the same work: pixels, network, layer, kernel, parameters and the solver's version."""
        parameters = {name: value for name, value in vars(self).items() if name not in ("picture", "model")}
        text = json.dumps(
            [parameters, self.picture.shape, weights.model_dump(exclude={"source"}), version], sort_keys=True
        )
        return hashlib.sha256(text.encode() + self.picture.tobytes()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """X̂ and what the network makes of it."""

    picture: Picture  # X̂ in 8 bits: the explanation
    x: Maps  # X̂ before rounding, normalised, (channels, H, W)
    maps: dict[str, NDArray[Any]]  # before, after: (h, w); others: (2,); others_before, others_after: (2, h, w)
    losses: Losses  # of the 8-bit picture
    losses_float: Losses
    loss_start: float
    loss_blank: float
    metrics: Metrics  # of the 8-bit picture
    metrics_float: Metrics
    target_met: bool | None
    iterations: int
    seconds: float
    stopped: Stop
    precision: str  # of the solver's evaluations; every number here is float32
    history: list[tuple[int, float, float, float, float]]
    weights: WeightsUsed
    gamma: float | None = None  # of evidence, where it is a weight


@dataclass(frozen=True)
class Step:
    """How far a question is that is being answered."""

    iteration: int
    budget: int
    terms: tuple[float, float, float, float]  # L_p, L_s, L_r, L


@dataclass(frozen=True)
class Sketch:
    """What X̂ looked like after so many evaluations."""

    iteration: int
    picture: Picture


@dataclass(eq=False)
class Ticket:
    """One question in the hands of an engine."""

    question: Question
    step: Step | None = None  # none while it waits
    answered: bool = False
    wanted: bool = False  # a sketch, after the next step
    sketch: Sketch | None = None


@dataclass(frozen=True)
class NoMemory:
    """There is no memory for this question now; the batch has forgotten it."""


Answered = list[tuple[Ticket, Answer | KernelscopeError | NoMemory]]


def internal(error: Exception) -> KernelscopeError:
    """What a caller is told of a bug; the log says more."""
    return KernelscopeError(f"internal error ({type(error).__name__}); the worker's log has the details")


def told(error: Exception, where: str) -> KernelscopeError:
    """One of ours as it is; of a bug the caller is told in short, and the log where it was."""
    if isinstance(error, KernelscopeError):
        return error
    log.error("%s failed", where, exc_info=error)
    return internal(error)


class Batch(Protocol):
    """Questions of one kind that a device answers together. They come and go between steps.

    Of what it returns it remembers nothing. That there is no memory for a question is one of its answers.
    """

    def __len__(self) -> int:
        """How many are being answered."""
        ...

    @property
    def room(self) -> int:
        """How many more may come now."""
        ...

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Begin with these. Returns those that are answered at once: a kernel that is silent, say."""
        ...

    def step(self) -> Answered:
        """Go on for at most half a second, and note in each ticket how far it is. Returns what is answered.

        A ticket whose sketch is wanted gets one.
        """
        ...

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """Answer these now or in the next steps, as far as they are: their deadline has passed."""
        ...

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Forget these."""
        ...


class NoSuchDevice(Exception):
    """The device that the settings ask for is not there; the message says what is."""


class Device(Protocol):
    """What computes; `worker/engine/dummy.py` has one without a network."""

    @property
    def name(self) -> str:
        """For people: `cpu`, or the card's name."""
        ...

    @property
    def version(self) -> str:
        """Of what it answers: another version may answer the same question otherwise."""
        ...

    def preload(self, model: str) -> None:
        """Load a network now. Raises ModelUnavailable."""
        ...

    def states(self) -> dict[str, NetworkState]:
        """Which networks can be run."""
        ...

    def state(self, model: str) -> NetworkState | None:
        """Of one of them, at little cost once it is loaded; None: no network has this name."""
        return self.states().get(model)

    def registered(self) -> list[Network]:
        """The networks beside those that come with the program. For the heartbeat: it may wait for the store."""
        ...

    def outdated(self) -> list[str]:
        """Loaded networks whose names stand for something else by now: this process is to start anew."""
        ...

    def frame(self, model: str) -> Frame:
        """Of the network's input. Loads the network; raises ModelUnavailable."""
        ...

    def weights(self, model: str) -> WeightsUsed:
        """Which weights the network has. Loads the network; raises ModelUnavailable."""
        ...

    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's kernels that are active on the picture, by mean activation, highest first.

        Like the batches, on the engine's thread only. Raises LayerNotCovered.
        """
        ...

    def feature_maps(self, model: str, layer: str, picture: Picture) -> Maps:
        """The layer's feature maps F of a picture, (C, h, w). On the engine's thread only. Raises LayerNotCovered."""
        ...

    def survey(self, model: str, layers: Sequence[str], pictures: Sequence[Picture]) -> dict[str, Seen]:
        """What these layers' maps of pictures are.

        On the engine's thread only. Raises LayerNotCovered, DeviceOutOfMemory.
        """
        ...

    def batch(self, question: Question) -> Batch:
        """An empty batch for questions of this one's kind. Raises ModelUnavailable, LayerNotCovered."""
        ...

    def memory(self) -> int:
        """Bytes that it has in use."""
        ...

    def broken(self, error: Exception) -> bool:
        """Whether after this error the device is good for nothing in this process."""
        ...

    def sound(self) -> bool:
        """Whether it computes what it should, of which a small test convinces itself, in a process of its own."""
        ...
