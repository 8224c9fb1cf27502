"""One slice of a job, run: questions → answers → pictures → store → record. It knows jobs, not tensors' insides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from shared import telemetry
from shared.errors import DeadlinePassed, KernelscopeError, LayerNotCovered, ModelUnavailable, StoreUnavailable
from shared.jobs import Claim, LostLease, Records, Sign, Transitions
from shared.schemas import Item, ItemResult
from shared.store import BlobStore
from shared.surveys.store import Surveys
from worker.engine.engine import Engine
from worker.engine.questions import Answer, Question, Step, Ticket, public_error
from worker.engine.scheduling import Account, EngineRequest
from worker.jobs import activations
from worker.jobs.artifacts import artifacts, facts, note
from worker.jobs.inputs import Decoder, Inputs
from worker.jobs.previews import Previews
from worker.jobs.surveying import Surveying
from worker.jobs.telemetry import Telemetry

log = logging.getLogger(__name__)

T = TypeVar("T")

STORE_RETRY_SECONDS = 0.5  # between two tries of an object store that is away
TERMS = ("preservation", "suppression", "regularization", "total")


@dataclass(frozen=True)
class Hands:
    """What slices are run with, the same for all of a worker's."""

    engine: Engine
    records: Records
    transitions: Transitions
    store: BlobStore
    surveys: Surveys
    decoder: Decoder
    telemetry: Telemetry
    able: Callable[[str, str], bool]  # whether the worker has a network and a layer now


@dataclass(eq=False)
class SliceRun:
    """A claimed slice on its way to its end."""

    hands: Hands
    claim: Claim
    asked: EngineRequest | None = None
    open: list[Item] = field(default_factory=list)  # the items of the questions that are asked
    lost: bool = False
    ended: bool = False
    watched: bool = False
    previews: Previews = field(default_factory=Previews)
    written: set[str] = field(default_factory=set)  # blobs, by their digests

    def __post_init__(self) -> None:
        """Small jobs do not wait behind big ones; the deadline is on this machine's clock, which may be any."""
        left = self.claim.seconds_left
        self.deadline = None if left is None else time.monotonic() + left
        self.account = Account(urgent=self.claim.queue == "interactive")
        read = partial(self._patiently, self.hands.store.get, self.claim.job_id)
        self.inputs = Inputs(self.claim, self.hands.engine, self.account, read, self.hands.decoder)
        more = (self.hands.engine, self.account, self.hands.surveys, self.hands.decoder, self._patiently)
        self.surveying = Surveying(self.claim, *more, lambda: not self.ended)

    def to_the_end(self) -> bool:
        """Bring it to its end. False where it was told to stop before: somebody else is to go on.

        Raises:
            LostLease, StoreUnavailable.
        """
        try:
            self._check_deadline()
            done = self._answer(self._questions()) if self.claim.request.explains else self._each()
            if done and not self.lost:
                self.hands.transitions.finish(self.claim)
        except (LostLease, StoreUnavailable):
            raise
        except Exception as error:
            if self._others(error):
                return False
            self.hands.transitions.fail(self.claim, public_error(error, self.claim.slice_id))
        else:
            return done
        finally:
            if self.asked:  # nobody waits for the rest
                self.asked.cancel()
        return True  # it has failed, which is an end

    @property
    def in_engine(self) -> bool:
        """Whether it waits for the engine."""
        return self.asked is not None

    def sign(self) -> Sign:
        """How far it is."""
        running = self._in_work()
        previews = self.previews.new(running, wanted=self.watched)
        steps = {index: ticket.step for index, ticket in running.items() if ticket.step}
        return Sign(self.claim, self._progress(steps) or self.surveying.progress(), previews)

    def lose(self) -> None:
        """It is another worker's, or its job was cancelled."""
        self.lost = True
        self.end()

    def end(self) -> None:
        """Stop waiting for the engine."""
        self.ended = True
        if asked := self.asked:
            asked.cancel()

    def _in_work(self) -> dict[int, Ticket]:
        """By the item's index."""
        asked = self.asked
        open_ = zip(self.open, asked.tickets, strict=True) if asked else ()
        return {item.index: ticket for item, ticket in open_ if not ticket.answered}

    def _progress(self, steps: dict[int, Step]) -> dict[str, Any]:
        """Of the items that run now: evaluations done, the most that they may take, mean loss, work done; and each."""
        if not steps:
            return {}
        return {
            "iteration": max(step.iteration for step in steps.values()),
            "budget": max(step.budget for step in steps.values()),
            "loss": sum(step.terms[-1] for step in steps.values()) / len(steps),
            "share": sum(min(1.0, step.iteration / step.budget) for step in steps.values()),
            "items": [
                {
                    "index": index,
                    "iteration": step.iteration,
                    "losses": dict(zip(TERMS, step.terms, strict=True)),
                    **({"preview": self.previews.told[index]} if index in self.previews.told else {}),
                }
                for index, step in steps.items()
            ],
        }

    def _questions(self) -> list[tuple[Item, Question]]:
        """The items with their kernels; ranks that no active kernel fills are skipped."""
        kernels = {item.index: self.inputs.kernel(item) for item in self.claim.items}
        if isinstance(self.claim.request.kernels, str):
            skipped = [item for item in self.claim.items if kernels[item.index] is None]
            self.hands.transitions.resolve(self.claim, skipped)
        return [
            (item, self.inputs.question(item, kernel))
            for item in self.claim.items
            if (kernel := kernels[item.index]) is not None
        ]

    def _answer(self, questions: list[tuple[Item, Question]]) -> bool:
        """Whether all were answered."""
        self._check_deadline()
        open_ = [(item, question) for item, question in questions if not self._reused(item, question)]
        self.open = [item for item, _ in open_]
        asked = self.hands.engine.ask([question for _, question in open_], account=self.account, deadline=self.deadline)
        self.asked = asked
        if self.ended:  # told so before there was anything to withdraw
            asked.cancel()
        left = len(open_)
        for number, answer in asked:
            self._commit(*open_[number], answer)
            left -= 1
        self.asked = None
        return not left

    def _each(self) -> bool:
        """One item after the other. Whether all were done."""
        for item in self.claim.items:
            if self.ended:
                return False
            self._check_deadline()
            if not (self._survey(item) if self.claim.request.surveys else self._rank(item)):
                return False
        return True

    def _survey(self, item: Item) -> bool:
        """One part of a data set. Whether all of it was looked at; where that fails, the others are yet."""
        try:
            result = self.surveying.part(item)
        except (LostLease, StoreUnavailable):
            raise
        except Exception as error:
            if self._others(error):
                raise
            result = ItemResult.of(item, self.claim.request, None).failed(public_error(error, self.claim.slice_id))
        if result:
            self._committed(result, {})
        return result is not None

    def _rank(self, item: Item) -> bool:
        """How active the layer's kernels are on one image."""
        request, engine = self.claim.request, self.hands.engine
        picture = self.inputs.picture(item.image)
        with telemetry.span("rank", model=request.model, layer=request.layer):
            maps = engine.call(engine.device.feature_maps, request.model, request.layer, picture, account=self.account)
        found, files = activations.measured(maps)
        own = {"weights": engine.device.weights(request.model), "device": engine.device.name, "note": self._note(item)}
        result = ItemResult.of(item, request, None).model_copy(update={**found, **own})
        self._committed(result, self._stored(files))
        return True

    def _note(self, item: Item, other: str | None = None) -> str | None:
        """What was ignored of the image's file, after another note where there is one."""
        return " ".join(filter(None, [other, *self.inputs.notes[item.image]])) or None

    def _check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlinePassed("the deadline passed before a worker was free")

    def _others(self, error: Exception) -> bool:
        """Whether this is other workers' business: the network or the layer turned out not to be there."""
        request = self.claim.request
        lacking = isinstance(error, ModelUnavailable | LayerNotCovered)
        return lacking and not self.hands.able(request.model, request.layer)

    def _reused(self, item: Item, question: Question) -> bool:
        """Whether the same work was done before, by this job or another: then its result is this item's too."""
        records = self.hands.records
        fingerprint = self._fingerprint(item, question)
        found = records.same(fingerprint)
        if found is None:
            return False
        source, result, blobs = found
        self.hands.transitions.check(self.claim)
        for digest in dict.fromkeys(blobs.values()):
            if source != self.claim.job_id and not self._patiently(
                self.hands.store.copy, source, digest, self.claim.job_id
            ):
                return False  # its job was removed, or the store was restored from before
        own = ItemResult.of(item, self.claim.request, question.kernel)
        mine = {name: getattr(own, name) for name in ("index", "image", "kernel", "rank")}
        self._committed(result.model_copy(update={**mine, "reused": True}), blobs)
        return True

    def _fingerprint(self, item: Item, question: Question) -> str:
        """Also of what was ignored of the image's file: a result's note says it."""
        device = self.hands.engine.device
        own = question.fingerprint(device.weights(question.model), device.version)
        return ":".join([self.claim.owner, own, *self.inputs.notes[item.image]])

    def _commit(self, item: Item, question: Question, answer: Answer | KernelscopeError) -> None:
        result = ItemResult.of(item, self.claim.request, question.kernel)
        if isinstance(answer, KernelscopeError):
            if self._others(answer):
                raise answer
            self._committed(result.failed(answer), {})
            return
        telemetry.past(
            "solve",
            time.time() - answer.seconds,
            model=question.model,
            layer=question.layer,
            kernel=question.kernel,
            method=question.method,
            iterations=answer.iterations,
            stopped=answer.stopped,
        )
        own = {"note": self._note(item, note(answer, question)), "device": self.hands.engine.device.name}
        blobs = self._stored(artifacts(answer, self.inputs.original(item.image)))
        whole = answer.stopped in ("converged", "budget")
        fingerprint = self._fingerprint(item, question) if whole else ""
        self._committed(result.model_copy(update={**facts(answer), **own}), blobs, fingerprint)

    def _committed(self, result: ItemResult, blobs: dict[str, str], fingerprint: str = "") -> None:
        self.hands.transitions.commit(self.claim, result, blobs, fingerprint)
        self.hands.telemetry.committed(self.claim.request.model, self.claim.request.layer, result)

    def _stored(self, artifacts: dict[str, bytes]) -> dict[str, str]:
        """Files are written before the item is committed, and only while the claim holds."""
        self.hands.transitions.check(self.claim)
        digests = {name: BlobStore.digest(data) for name, data in artifacts.items()}
        for name, data in artifacts.items():
            if digests[name] not in self.written:
                self._patiently(self.hands.store.put, self.claim.job_id, data)
                self.written.add(digests[name])
        return digests

    def _patiently(self, action: Callable[..., T], *arguments: Any) -> T:
        """What the object store does: one that is away is sat out while the lease is held, however long that is.

        Raises:
            StoreUnavailable: the slice is to end meanwhile.
        """
        while True:
            try:
                return action(*arguments)
            except StoreUnavailable as error:
                if self.ended:
                    raise
                log.warning("%s: %s; trying again", self.claim.slice_id, error)
                time.sleep(STORE_RETRY_SECONDS)
