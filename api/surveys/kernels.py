"""The pages of a layer and its kernels: the data of a survey, with the caller's explanations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from api.services import Services
from api.surveys.crops import box_of
from api.surveys.explanations import LoadedExplanation, Note, load_explanation
from api.surveys.lifecycle import describe_all
from shared import catalogue, workers
from shared.catalogue import Layer, Network
from shared.collection import READERS
from shared.errors import NetworkChanged, SurveyNotFound
from shared.images import Frame
from shared.schemas import Bin, KernelPage, KernelSummary, LayerKernels, Similar, Survey, TopImage
from shared.surveys.parts import Whole
from shared.surveys.store import SurveyFacts
from shared.surveys.tally import EDGES, Kernel

MOST_SURVEYS = 20  # listed on a page
MOST_LOADED = 32  # explanations whose jobs are read for one layer's page


class LayerView:
    """A layer in one survey, as a caller sees it.

    Raises:
        UnknownModel, UnknownLayer.
        SurveyNotFound: the caller can read no survey of this layer.
        NetworkChanged: the survey was made with another network of this name.
    """

    def __init__(self, services: Services, owner: str, network: str, layer: str, survey_id: str | None) -> None:
        self.services, self.owner = services, owner
        self.network: Network = workers.network(services.redis, network)
        self.layer: Layer = self.network.layer(layer)
        known = self._surveys()
        if survey_id is not None and survey_id not in known:
            services.surveys.collection.facts(survey_id, owner)
            raise SurveyNotFound(f"survey {survey_id} does not include {self.layer.name} of {network}")
        if not known:
            raise SurveyNotFound(
                f"no survey that you may read includes {self.layer.name} of {network}: "
                "`kernelscope datasets add FOLDER` uploads images, `kernelscope surveys make NAME` surveys them"
            )
        listed = list(known)[:MOST_SURVEYS]
        shown = {one: known[one] for one in dict.fromkeys([*listed, *([survey_id] if survey_id else [])])}
        self.surveys = {one.id: one for one in describe_all(services, shown, owner)}
        self.survey_id = survey_id or self._newest()
        self.whole: Whole | None = services.surveys.layer(self.survey_id, self.layer.name)
        shape = (self.layer.kernels, self.layer.height * self.layer.width)
        if self.whole and (len(self.whole.tally.mean), self.whole.tally.positions) != shape:
            raise NetworkChanged(
                f"{network} has changed since survey {self.survey_id} was made: {self.layer.name} had maps of another "
                "size; make a new survey"
            )

    @property
    def frame(self) -> Frame:
        """The shape of the network's input."""
        return self.network.frame

    @property
    def survey(self) -> Survey:
        """The survey that is shown."""
        return self.surveys[self.survey_id]

    def kernels(self) -> LayerKernels:
        """The page of the layer."""
        notes = self._notes()
        kernels = [self._summary(kernel, notes.get(kernel)) for kernel in range(self.layer.kernels)]
        return LayerKernels(survey=self.survey, surveys=list(self.surveys.values()), layer=self.layer, kernels=kernels)

    def kernel(self, kernel: int) -> KernelPage:
        """The page of one kernel.

        Raises:
            UnknownKernel.
        """
        catalogue.check_kernels(self.layer, [kernel])
        one, loaded = self._statistics(kernel), self._explained(kernel)
        return KernelPage(
            network=self.network.name,
            layer=self.layer,
            kernel=kernel,
            survey=self.survey,
            surveys=list(self.surveys.values()),
            mean=one.mean,
            max=one.max,
            active=one.active,
            active_images=one.active_images,
            histogram=self._histogram(kernel),
            top=self._top(one, loaded),
            similar=self._similar(kernel),
            explanation=loaded.explanation if loaded else None,
        )

    def _surveys(self) -> dict[str, SurveyFacts]:
        every = self.services.surveys.collection.all(self.owner).items()
        return {one: it for one, it in every if it.model == self.network.name and self.layer.name in it.layers}

    def _newest(self) -> str:
        """The newest complete survey; else the newest one with data; else the newest."""
        order = sorted(self.surveys.values(), key=lambda one: (one.surveyed < one.images, not one.surveyed))
        return order[0].id

    def _statistics(self, kernel: int) -> Kernel:
        return self.whole.tally.kernel(kernel) if self.whole else Kernel(0.0, 0.0, 0.0, 0.0, [])

    def _notes(self) -> dict[int, Note]:
        """The notes of the layer's explained kernels. Those whose jobs had not ended are brought up to date."""
        texts = self.services.surveys.all_explained(self.survey_id, self.owner, self.layer.name)
        notes = {kernel: Note.read(text) for kernel, text in texts.items()}
        pending = [kernel for kernel, note in notes.items() if not note.ended][:MOST_LOADED]
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(lambda kernel: self._explanation(kernel, notes[kernel]), pending))
        return notes

    def _explained(self, kernel: int) -> LoadedExplanation | None:
        text = self.services.surveys.explained(self.survey_id, self.owner, self.layer.name, kernel)
        found = self._explanation(kernel, Note.read(text)) if text else None
        if found and (used := next((one.weights for one in found.results.values() if one.weights), None)):
            surveyed = self.survey.weights
            if surveyed and surveyed.sha256 != used.sha256:
                found.explanation.note = (
                    f"The pictures were made with the weights {used.source}, but the survey with {surveyed.source}: "
                    "the network has changed in between."
                )
        return found

    def _explanation(self, kernel: int, note: Note) -> LoadedExplanation | None:
        return load_explanation(self.services, self.owner, (self.survey_id, self.layer.name, kernel), note)

    def _summary(self, kernel: int, note: Note | None) -> KernelSummary:
        one, scores = self._statistics(kernel), (note.scores if note else None) or {}
        picture = None
        if one.top and note and 0 in note.pictured:
            number, _, place = one.top[0]
            picture = self._picture(note.job, 0, place) if note.images[0] == number else None
        return KernelSummary(
            kernel=kernel,
            mean=one.mean,
            max=one.max,
            active=one.active,
            active_images=one.active_images,
            crop=self._first(one),
            picture=picture,
            consistency=(scores.get("consistency") or {}).get("value"),
            colour=(scores.get("colour") or {}).get("value"),
        )

    def _top(self, one: Kernel, loaded: LoadedExplanation | None) -> list[TopImage]:
        found = []
        for rank, (number, peak, place) in enumerate(one.top):
            digest, name = self.services.surveys.image(self.survey_id, number)
            row, column = divmod(place, self.layer.width)
            found.append(
                TopImage(
                    rank=rank,
                    image=digest,
                    name=name,
                    activation=peak,
                    row=row,
                    column=column,
                    box=box_of(self.layer, self.frame, (row, column)),
                    crop=self._crop(number, place),
                    **self._explanation_of_image(loaded, number, place),
                )
            )
        return found

    def _explanation_of_image(self, loaded: LoadedExplanation | None, number: int, place: int) -> dict[str, Any]:
        """The fields of `TopImage` about X̂."""
        result = loaded.results.get(number) if loaded else None
        if loaded is None or result is None:
            return {}
        if result.status != "succeeded":
            return {"error": result.error.detail if result.error else f"it was {result.status}"}
        job_id = loaded.explanation.job
        return {
            "picture": self._picture(job_id, result.index, place),
            "whole": f"/jobs/{job_id}/artifacts/{result.index}/panel.png",
            "ssim": result.metrics.ssim if result.metrics else None,
        }

    def _histogram(self, kernel: int) -> list[Bin]:
        """The bin of zero activation, then all bins from the first with an image to the last."""
        if self.whole is None:
            return []
        counts = self.whole.tally.histogram[kernel].tolist()
        starts = [0.0, 0.0, *EDGES.tolist()]
        ends: list[float | None] = [0.0, *EDGES.tolist(), None]
        bins = [
            Bin(start=start, end=end, images=images) for start, end, images in zip(starts, ends, counts, strict=True)
        ]
        filled = [number for number, one in enumerate(bins) if number and one.images]
        return [bins[0], *(bins[filled[0] : filled[-1] + 1] if filled else [])]

    def _similar(self, kernel: int) -> list[Similar]:
        if self.whole is None:
            return []
        pairs = zip(self.whole.alike[kernel].tolist(), self.whole.correlations[kernel].tolist(), strict=True)
        return [
            Similar(kernel=other, correlation=correlation, crop=self._first(self._statistics(other)))
            for other, correlation in pairs
            if correlation > 0
        ]

    def _first(self, one: Kernel) -> str | None:
        return self._crop(one.top[0][0], one.top[0][2]) if one.top else None

    def _crop(self, number: int, place: int) -> str:
        row, column = divmod(place, self.layer.width)
        return f"{self._here}/crops/{number}/{row}/{column}"

    def _picture(self, job_id: str, index: int, place: int) -> str:
        row, column = divmod(place, self.layer.width)
        return f"{self._here}/pictures/{job_id}/{index}/{row}/{column}"

    @property
    def _here(self) -> str:
        return f"/surveys/{self.survey_id}/layers/{self.layer.name}"
