"""A slice of a survey: images are read and decoded ahead of the engine, and each part's statistics are stored."""

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
from worker.engine.questions import SURVEY_BATCH, Picture
from worker.engine.scheduling import Account
from worker.jobs.inputs import Decoder

AHEAD = 4 * SURVEY_BATCH  # images that are decoded in advance


class WithRetries(Protocol):
    """Calls an action of the object store, and retries while the store is unavailable."""

    def __call__(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """The action's result."""
        ...


@dataclass
class Surveying:
    """The parts of one claim. A survey has the id of its job, and a part the number of its item's image."""

    claim: Claim
    engine: Engine
    account: Account
    surveys: Surveys
    decoder: Decoder
    with_retries: WithRetries
    continues: Callable[[], bool]  # returns whether to continue
    _done: int = 0  # images of the present part
    _total: int = 0

    def part(self, item: Item) -> ItemResult | None:
        """Survey all images of a part. None if the slice was stopped before the end.

        Raises:
            SurveyNotFound, DataSetNotFound: it has been deleted.
            NetworkChanged, LayerNotCovered, ModelUnavailable, DeviceOutOfMemory.
        """
        request, survey_id, device = self.claim.request, self.claim.job_id, self.engine.device
        begin = time.monotonic()
        used = Used(weights=device.weights(request.model), frame=device.frame(request.model))
        self.with_retries(self.surveys.begin, survey_id, used)
        images = self.with_retries(self.surveys.images, survey_id, item.image)
        dataset = self.with_retries(self.surveys.collection.facts, survey_id, None).dataset
        self._done, self._total = 0, len(images)
        found: dict[str, list[Seen]] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="decoding") as reader:
            ahead, left = deque[Future[Picture]](), iter(images)
            try:
                while self.continues() and self._done < self._total:
                    ahead += [reader.submit(self._picture, dataset, *one) for one in islice(left, AHEAD - len(ahead))]
                    pictures = [ahead.popleft().result() for _ in range(min(SURVEY_BATCH, len(ahead)))]
                    self._survey(pictures, found)
            finally:
                reader.shutdown(cancel_futures=True)
        if self._done < self._total:
            return None
        layers = {name: Part.of(seen, first_of(item.image)) for name, seen in found.items()}
        self.with_retries(self.surveys.put_part, survey_id, item.image, layers, used)
        self._total = 0
        own = {"weights": used.weights, "device": device.name, "seconds": round(time.monotonic() - begin, 3)}
        return ItemResult.of(item, request, None).model_copy(update=own)

    def progress(self) -> dict[str, Any]:
        """The progress of the present part: images, and the fraction that is done."""
        done, total = self._done, self._total
        return {"iteration": done, "budget": total, "share": done / total, "items": []} if total else {}

    def _survey(self, pictures: list[Picture], found: dict[str, list[Seen]]) -> None:
        request, engine = self.claim.request, self.engine
        seen = engine.call(engine.device.survey, request.model, request.layers, pictures, account=self.account)
        for name, maps in seen.items():
            found.setdefault(name, []).append(maps)
        self._done += len(pictures)

    def _picture(self, dataset: str, digest: str, name: str) -> Picture:
        device, model = self.engine.device, self.claim.request.model
        try:
            data = self.with_retries(self.surveys.datasets.image, dataset, digest, None)
        except DataSetNotFound as error:
            raise DataSetNotFound(f"the data set was deleted during the survey: {name} is missing") from error
        fed = device.weights(model).preprocessing
        try:
            return self.decoder(data, device.frame(model), fed.resize if fed else "squash")[0]
        except (UnsupportedImage, UnusableImage) as error:
            raise type(error)(f"{name}: {error.detail}") from error
