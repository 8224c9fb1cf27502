"""A slice of a survey, run part by part: images read and decoded ahead of the engine, what it sees put in the store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from shared.errors import DataSetNotFound
from shared.jobs import Claim
from shared.schemas import Item
from shared.surveys.parts import Part
from shared.surveys.store import Surveys, first_of
from worker.engine.engine import Engine
from worker.engine.questions import SURVEYED, Picture
from worker.engine.turns import Account
from worker.jobs.inputs import Decoder


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

    def part(self, item: Item) -> bool:
        """Look at all images of a part. False where it was told to stop before.

        Raises:
            SurveyNotFound, DataSetNotFound: it was deleted meanwhile.
            NetworkChanged, LayerNotCovered, ModelUnavailable, DeviceOutOfMemory.
        """
        request, survey_id, device = self.claim.request, self.claim.job_id, self.engine.device
        self.patiently(self.surveys.begin, survey_id, device.weights(request.model))
        images = self.patiently(self.surveys.images, survey_id, item.image)
        dataset = self.patiently(self.surveys.shelf.facts, survey_id, None).dataset
        self._looked, self._of = 0, len(images)
        found: dict[str, list[Part]] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="decoding") as reader:
            pictures = reader.map(lambda one: self._picture(dataset, *one), images)
            try:
                while self.wanted() and (some := list(islice(pictures, SURVEYED))):
                    self._look(some, first_of(item.image) + self._looked, found)
            except _Unwanted:
                return False
            finally:
                reader.shutdown(cancel_futures=True)
        if self._looked < self._of:
            return False
        self.patiently(self.surveys.put_part, survey_id, item.image, {name: Part.of(it) for name, it in found.items()})
        self._of = 0
        return True

    def progress(self) -> dict[str, Any]:
        """Of the part that is looked at: images, and the share of its work that is done."""
        looked, of = self._looked, self._of
        return {"iteration": looked, "budget": of, "share": looked / of, "items": []} if of else {}

    def _look(self, pictures: list[Picture], first: int, found: dict[str, list[Part]]) -> None:
        request = self.claim.request
        seen = self.engine.call(
            self.engine.device.survey, request.model, request.layers, pictures, first, account=self.account
        )
        for name, part in seen.items():
            found.setdefault(name, []).append(part)
        self._looked += len(pictures)

    def _picture(self, dataset: str, digest: str, name: str) -> Picture:
        if not self.wanted():
            raise _Unwanted
        device, model = self.engine.device, self.claim.request.model
        try:
            data = self.patiently(self.surveys.datasets.image, dataset, digest, None)
        except DataSetNotFound as error:
            raise DataSetNotFound(f"the data set was deleted while it was surveyed: {name} is gone") from error
        fed = device.weights(model).preprocessing
        return self.decoder(data, device.frame(model), fed.resize if fed else "squash")[0]


class _Unwanted(Exception):
    """The slice is to end; nobody looks at the pictures that were still to come."""
