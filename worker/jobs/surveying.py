"""A slice of a survey, run part by part: images read and decoded ahead of the engine, what it sees put in the store."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from shared.errors import DataSetNotFound, UnsupportedImage, UnusableImage
from shared.jobs import Claim
from shared.schemas import Item, ItemResult
from shared.surveys.parts import Part, Seen
from shared.surveys.store import Surveys, Used, first_of
from worker.engine.engine import Engine
from worker.engine.questions import SURVEYED, Picture
from worker.engine.turns import Account
from worker.jobs.inputs import Decoder

AHEAD = 4 * SURVEYED  # images that are decoded before they are looked at


class Patiently(Protocol):
    """Sits out an object store that is away."""

    def __call__(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """What the action returns."""
        ...


@dataclass
class Surveying:
    """Of one claim. A survey has the id of its job, and a part the number of its item's image."""

    claim: Claim
    engine: Engine
    account: Account
    surveys: Surveys
    decoder: Decoder
    patiently: Patiently
    wanted: Callable[[], bool]  # whether it shall go on
    _looked: int = 0
    _of: int = 0

    def part(self, item: Item) -> ItemResult | None:
        """Look at all images of a part. None where it was told to stop before.

        Raises:
            SurveyNotFound, DataSetNotFound: it was deleted meanwhile.
            NetworkChanged, LayerNotCovered, ModelUnavailable, DeviceOutOfMemory.
        """
        request, survey_id, device = self.claim.request, self.claim.job_id, self.engine.device
        begin = time.monotonic()
        used = Used(weights=device.weights(request.model), frame=device.frame(request.model))
        self.patiently(self.surveys.begin, survey_id, used)
        images = self.patiently(self.surveys.images, survey_id, item.image)
        dataset = self.patiently(self.surveys.shelf.facts, survey_id, None).dataset
        self._looked, self._of = 0, len(images)
        found: dict[str, list[Seen]] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="decoding") as reader:
            ahead, left = deque[Future[Picture]](), iter(images)
            try:
                while self.wanted() and self._looked < self._of:
                    ahead += [reader.submit(self._picture, dataset, *one) for one in islice(left, AHEAD - len(ahead))]
                    some = [ahead.popleft().result() for _ in range(min(SURVEYED, len(ahead)))]
                    self._look(some, found)
            finally:
                reader.shutdown(cancel_futures=True)
        if self._looked < self._of:
            return None
        layers = {name: Part.of(seen, first_of(item.image)) for name, seen in found.items()}
        self.patiently(self.surveys.put_part, survey_id, item.image, layers, used)
        self._of = 0
        own = {"weights": used.weights, "device": device.name, "seconds": round(time.monotonic() - begin, 3)}
        return ItemResult.of(item, request, None).model_copy(update=own)

    def progress(self) -> dict[str, Any]:
        """Of the part that is looked at: images, and the share of its work that is done."""
        looked, of = self._looked, self._of
        return {"iteration": looked, "budget": of, "share": looked / of, "items": []} if of else {}

    def _look(self, pictures: list[Picture], found: dict[str, list[Seen]]) -> None:
        request, engine = self.claim.request, self.engine
        seen = engine.call(engine.device.survey, request.model, request.layers, pictures, account=self.account)
        for name, maps in seen.items():
            found.setdefault(name, []).append(maps)
        self._looked += len(pictures)

    def _picture(self, dataset: str, digest: str, name: str) -> Picture:
        device, model = self.engine.device, self.claim.request.model
        try:
            data = self.patiently(self.surveys.datasets.image, dataset, digest, None)
        except DataSetNotFound as error:
            raise DataSetNotFound(f"the data set was deleted while it was surveyed: {name} is gone") from error
        fed = device.weights(model).preprocessing
        try:
            return self.decoder(data, device.frame(model), fed.resize if fed else "squash")[0]
        except (UnsupportedImage, UnusableImage) as error:
            raise type(error)(f"{name}: {error.detail}") from error
