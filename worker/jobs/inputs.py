"""From a slice of a request to questions: images are decoded, and ranks become kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from shared import images
from shared.errors import UnknownImage
from shared.jobs import Claim
from shared.schemas import ExplainRequest, Item
from worker.engine.engine import Engine
from worker.engine.questions import Picture, Question
from worker.engine.scheduling import Account
from worker.jobs.artifacts import encoded

SOLVING = ("solver", "effort", "iterations", "target_ssim", "max_preservation")
OPTIONS = {  # the request's options of each method; of the others, `scaling`
    "suppression": (*SOLVING, "only_remove"),
    "evidence": (*SOLVING, "gamma", "max_invention"),
    "lrp": ("rule", "scaling"),
}


class Decoder:
    """Decodes one image at a time for all slices of a worker, since one of 50 megapixels may take 600 MB.

    Args:
        max_pixels: the largest image.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._lock = Lock()

    def __call__(self, data: bytes, frame: images.Frame, how: Literal["squash", "crop"]) -> tuple[Picture, list[str]]:
        """The network's input, and notes on what of the file was ignored."""
        with self._lock:
            seen = images.decoded(data, self.max_pixels, deep=frame.channels == 1)
            return images.array(images.resized(seen.image, frame, how)), seen.notes


@dataclass
class Inputs:
    """The inputs of one slice.

    Args:
        claim: of the slice.
        engine: computes rankings.
        account: to which calls to the engine are charged.
        read: returns the bytes of an image by their digest, or None.
        decoder: of the worker.
    """

    claim: Claim
    engine: Engine
    account: Account
    read: Callable[[str], bytes | None]
    decoder: Decoder
    pictures: dict[int, Picture] = field(default_factory=dict)  # by the image's number in the request
    originals: dict[int, bytes] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)  # on what was ignored
    rankings: dict[int, list[int]] = field(default_factory=dict)

    @property
    def request(self) -> ExplainRequest:
        """The slice's request."""
        return self.claim.request

    def picture(self, number: int) -> Picture:
        """The network's input for an image of the request."""
        if number not in self.pictures:
            frame = self.engine.device.frame(self.request.model)
            fed = self.engine.device.weights(self.request.model).preprocessing
            digest = self.request.images[number]
            data = self.read(digest)
            if data is None:
                raise UnknownImage(f"image {digest} is missing from the store")
            self.pictures[number], self.notes[number] = self.decoder(data, frame, fed.resize if fed else "squash")
        return self.pictures[number]

    def original(self, number: int) -> bytes:
        """The network's input as a PNG."""
        if number not in self.originals:
            self.originals[number] = encoded(self.picture(number))
        return self.originals[number]

    def kernel(self, item: Item) -> int | None:
        """The item's kernel; None if the layer has fewer active kernels than its rank."""
        if item.rank is None:
            return item.kernel
        if item.image not in self.rankings:
            self.rankings[item.image] = self.engine.call(
                self.engine.device.ranking,
                self.request.model,
                self.request.layer,
                self.picture(item.image),
                account=self.account,
            )
        ranking = self.rankings[item.image]
        return ranking[item.rank] if item.rank < len(ranking) else None

    def question(self, item: Item, kernel: int) -> Question:
        """The item's question. Options that its method does not use have their defaults, for equal fingerprints."""
        request = self.request
        options = {name: getattr(request, name) for name in OPTIONS.get(item.method, ("scaling",))}
        return Question(
            model=request.model,
            layer=request.layer,
            picture=self.picture(item.image),
            kernel=kernel,
            alpha=item.alpha,
            beta=item.beta,
            method=item.method,
            **options,
        )
