"""The interfaces of the engine: questions, answers, and what it requires of a device.

This module does not import torch, so that tests can use a device without it.
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

# γ = 0.35·min(D, 16) by default. These are not part of a fingerprint: after a change, raise the solvers' VERSION.
GAMMA_PER_LAYER = 0.35
GAMMA_LAYERS = 16  # VGG-19 has 15 below its last layer. γ = 5.6 suffices at any depth; with γ = 20, X̂ stays at X
SURVEY_BATCH = 4  # pictures of a survey in one forward pass, between two steps of the batches

Picture = NDArray[Any]  # (H, W, 3), or (H, W, 1) in grey; 0 to 255 in uint8, or in float32 from 16-bit grey
Maps = NDArray[np.float32]  # (C, h, w)


@dataclass(frozen=True, eq=False)
class Question:
    """What does this kernel respond to in this picture? The fields are the request's parameters."""

    model: str
    layer: str
    picture: Picture  # of the network's input size
    kernel: int
    alpha: float
    beta: float
    solver: str = "fast"
    effort: str = "standard"
    iterations: int | None = None
    target_ssim: float | None = None
    max_preservation: float | None = None
    only_remove: bool = False
    gamma: float | None = None  # of evidence; the default depends on the layer's depth
    max_invention: float | None = None
    method: str = "suppression"
    rule: str = "zplus"
    scaling: str = "max"

    @property
    def bounded(self) -> bool:
        """Whether L_p or SSIM of the kernel's map is bounded."""
        return self.target_ssim is not None or self.max_preservation is not None

    @property
    def removes_only(self) -> bool:
        """Whether X̂ may only take away from the image."""
        return self.only_remove or self.method == "evidence"

    def weight(self, depth: int) -> float:
        """γ of evidence with `depth` tapped layers below: as requested, else 0.35 for each, for at most 16."""
        if self.gamma is not None:
            return self.gamma
        return 0.0 if self.max_invention is not None else GAMMA_PER_LAYER * min(depth, GAMMA_LAYERS)

    @property
    def kind(self) -> tuple[str, ...]:
        """Questions of the same kind can be answered in one batch."""
        return self.model, self.layer, self.method, self.solver

    def fingerprint(self, weights: WeightsUsed, version: str) -> str:
        """A SHA-256 of all that determines the answer: pixels, weights, layer, kernel, parameters, solver version."""
        parameters = {name: value for name, value in vars(self).items() if name not in ("picture", "model")}
        text = json.dumps(
            [parameters, self.picture.shape, weights.model_dump(exclude={"source"}), version], sort_keys=True
        )
        return hashlib.sha256(text.encode() + self.picture.tobytes()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """X̂ and its measurements."""

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
    precision: str  # of the solver's evaluations; the measurements are in float32
    history: list[tuple[int, float, float, float, float]]
    weights: WeightsUsed
    gamma: float | None = None  # of evidence without a bound on L_e


@dataclass(frozen=True)
class Step:
    """The progress of a question."""

    iteration: int
    budget: int
    terms: tuple[float, float, float, float]  # L_p, L_s, L_r, L


@dataclass(frozen=True)
class Preview:
    """X̂ in 8 bits after `iteration` evaluations."""

    iteration: int
    picture: Picture


@dataclass(eq=False)
class Ticket:
    """A question that was submitted to an engine, and its progress."""

    question: Question
    step: Step | None = None  # None while it waits
    answered: bool = False
    preview_wanted: bool = False  # the next step sets `preview`
    preview: Preview | None = None


@dataclass(frozen=True)
class OutOfMemory:
    """There is no memory for this question now; the batch has removed it."""


Answered = list[tuple[Ticket, Answer | KernelscopeError | OutOfMemory]]


def internal_error(error: Exception) -> KernelscopeError:
    """The error that a caller sees after a bug; the details are in the log."""
    return KernelscopeError(f"internal error ({type(error).__name__}); the worker's log has the details")


def public_error(error: Exception, where: str) -> KernelscopeError:
    """The error that a caller sees: one of ours unchanged, any other as an internal error that is logged."""
    if isinstance(error, KernelscopeError):
        return error
    log.error("%s failed", where, exc_info=error)
    return internal_error(error)


class Batch(Protocol):
    """Questions of one kind that a device answers together. They join and leave between steps.

    A question that is answered, also with OutOfMemory, is no longer part of the batch.
    """

    def __len__(self) -> int:
        """The number of questions."""
        ...

    @property
    def room(self) -> int:
        """How many more may join now."""
        ...

    def add(self, tickets: Sequence[Ticket]) -> Answered:
        """Add questions. Returns those that are answered at once, for example about a silent kernel."""
        ...

    def step(self) -> Answered:
        """Compute for at most half a second. Returns what is answered.

        Updates `step` of each ticket, and `preview` of those with `preview_wanted`.
        """
        ...

    def stop(self, tickets: Sequence[Ticket]) -> Answered:
        """Answer these with the present X̂, now or in the next steps: their deadline has passed."""
        ...

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Remove these."""
        ...


class NoSuchDevice(Exception):
    """The device of the settings is not available; the message lists those that are."""


class Device(Protocol):
    """A device; that of `worker/engine/dummy.py` has no network."""

    @property
    def name(self) -> str:
        """`cpu`, or the card's name, for display."""
        ...

    @property
    def version(self) -> str:
        """The version of its answers: another version may answer the same question differently."""
        ...

    def preload(self, model: str) -> None:
        """Load a network now. Raises ModelUnavailable."""
        ...

    def retry(self) -> None:
        """Start to load again what could not be loaded, if its pause is over. Called by the heartbeat."""
        ...

    def states(self) -> dict[str, NetworkState]:
        """The state of each network by name."""
        ...

    def state(self, model: str) -> NetworkState | None:
        """The state of one network, cheap once it is loaded; None: no network has this name."""
        return self.states().get(model)

    def registered(self) -> list[Network]:
        """The networks that are not built in. Called by the heartbeat only, since it may wait for the store."""
        ...

    def outdated(self) -> list[str]:
        """Loaded networks whose registration or files have changed, for which the process must be restarted."""
        ...

    def frame(self, model: str) -> Frame:
        """The size of the network's input. Loads the network; raises ModelUnavailable."""
        ...

    def weights(self, model: str) -> WeightsUsed:
        """The network's weights. Loads the network; raises ModelUnavailable."""
        ...

    def ranking(self, model: str, layer: str, picture: Picture) -> list[int]:
        """The layer's active kernels by mean |F|, highest first.

        Called on the engine's thread only, like all methods that compute. Raises LayerNotCovered.
        """
        ...

    def feature_maps(self, model: str, layer: str, picture: Picture) -> Maps:
        """The layer's feature maps F of a picture, (C, h, w). Raises LayerNotCovered."""
        ...

    def survey(self, model: str, layers: Sequence[str], pictures: Sequence[Picture]) -> dict[str, Seen]:
        """Statistics of these layers' maps of the pictures. Raises LayerNotCovered, DeviceOutOfMemory."""
        ...

    def batch(self, question: Question) -> Batch:
        """An empty batch for questions of this one's kind. Raises ModelUnavailable, LayerNotCovered."""
        ...

    def memory(self) -> int:
        """Allocated bytes."""
        ...

    def broken(self, error: Exception) -> bool:
        """Whether the device cannot be used in this process after this error."""
        ...

    def sound(self) -> bool:
        """Whether it passes a self-test in a separate process."""
        ...
