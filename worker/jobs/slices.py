"""Runs one slice of a job: items → questions → answers → files in the store → results in the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from shared import telemetry
from shared.errors import DeadlinePassed, KernelscopeError, LayerNotCovered, ModelUnavailable, StoreUnavailable
from shared.jobs import Claim, Heartbeat, LostLease, Records, Transitions
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

STORE_RETRY_SECONDS = 0.5  # between two attempts while the object store is unavailable
TERMS = ("preservation", "suppression", "regularization", "total")


@dataclass(frozen=True)
class SliceContext:
    """What all slices of a worker share."""

    engine: Engine
    records: Records
    transitions: Transitions
    store: BlobStore
    surveys: Surveys
    decoder: Decoder
    telemetry: Telemetry
    able: Callable[[str, str], bool]  # whether the worker has this network and layer now


@dataclass(eq=False)
class SliceRun:
    """A claimed slice."""

    context: SliceContext
    claim: Claim
    engine_request: EngineRequest | None = None
    open: list[Item] = field(default_factory=list)  # the items of the engine request
    lost: bool = False  # the lease
    stopped: bool = False
    watched: bool = False  # whether a client follows the previews
    previews: Previews = field(default_factory=Previews)
    written: set[str] = field(default_factory=set)  # digests of blobs

    def __post_init__(self) -> None:
        """Convert the remaining time into a deadline on this machine's monotonic clock."""
        left = self.claim.seconds_left
        self.deadline = None if left is None else time.monotonic() + left
        self.account = Account(urgent=self.claim.queue == "interactive")
        read = partial(self._with_retries, self.context.store.get, self.claim.job_id)
        self.inputs = Inputs(self.claim, self.context.engine, self.account, read, self.context.decoder)
        shared = (self.context.engine, self.account, self.context.surveys, self.context.decoder, self._with_retries)
        self.surveying = Surveying(self.claim, *shared, lambda: not self.stopped)

    def run(self) -> bool:
        """Run the slice to its end. False if it was stopped before, so that another worker must continue.

        Raises:
            LostLease, StoreUnavailable.
        """
        try:
            self._check_deadline()
            done = self._answer(self._questions()) if self.claim.request.explains else self._each()
            if done and not self.lost:
                self.context.transitions.finish(self.claim)
        except (LostLease, StoreUnavailable):
            raise
        except Exception as error:
            if self._for_other_workers(error):
                return False
            self.context.transitions.fail(self.claim, public_error(error, self.claim.slice_id))
        else:
            return done
        finally:
            if self.engine_request:
                self.engine_request.cancel()  # of the open questions
        return True  # the slice has failed

    @property
    def in_engine(self) -> bool:
        """Whether it waits for the engine."""
        return self.engine_request is not None

    def report(self) -> Heartbeat:
        """The progress and the new previews of its items."""
        running = self._running()
        previews = self.previews.new(running, wanted=self.watched)
        steps = {index: ticket.step for index, ticket in running.items() if ticket.step}
        return Heartbeat(self.claim, self._progress(steps) or self.surveying.progress(), previews)

    def lease_lost(self) -> None:
        """Stop: another worker has the lease, or the job was cancelled."""
        self.lost = True
        self.stop()

    def stop(self) -> None:
        """Cancel the open questions; without questions, stop after the present item."""
        self.stopped = True
        if request := self.engine_request:
            request.cancel()

    def _running(self) -> dict[int, Ticket]:
        """The tickets without an answer, by the item's index."""
        request = self.engine_request
        open_ = zip(self.open, request.tickets, strict=True) if request else ()
        return {item.index: ticket for item, ticket in open_ if not ticket.answered}

    def _progress(self, steps: dict[int, Step]) -> dict[str, Any]:
        """The progress of the running items: evaluations, budget, mean loss and work done of all, and of each."""
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
                    **({"preview": self.previews.iterations[index]} if index in self.previews.iterations else {}),
                }
                for index, step in steps.items()
            ],
        }

    def _questions(self) -> list[tuple[Item, Question]]:
        """The items with their questions. Items whose rank has no active kernel are skipped."""
        kernels = {item.index: self.inputs.kernel(item) for item in self.claim.items}
        if isinstance(self.claim.request.kernels, str):
            skipped = [item for item in self.claim.items if kernels[item.index] is None]
            self.context.transitions.resolve(self.claim, skipped)
        return [
            (item, self.inputs.question(item, kernel))
            for item in self.claim.items
            if (kernel := kernels[item.index]) is not None
        ]

    def _answer(self, questions: list[tuple[Item, Question]]) -> bool:
        """Answer and commit each question. Returns whether all were answered."""
        self._check_deadline()
        open_ = [(item, question) for item, question in questions if not self._reused(item, question)]
        self.open = [item for item, _ in open_]
        request = self.context.engine.ask([one for _, one in open_], account=self.account, deadline=self.deadline)
        self.engine_request = request
        if self.stopped:  # before there was a request to cancel
            request.cancel()
        left = len(open_)
        for number, answer in request:
            self._commit(*open_[number], answer)
            left -= 1
        self.engine_request = None
        return not left

    def _each(self) -> bool:
        """Run the items one after the other. Returns whether all were done."""
        for item in self.claim.items:
            if self.stopped:
                return False
            self._check_deadline()
            if not (self._survey(item) if self.claim.request.surveys else self._rank(item)):
                return False
        return True

    def _survey(self, item: Item) -> bool:
        """Survey one part of a data set. Returns whether it was completed or failed; the other parts continue."""
        try:
            result = self.surveying.part(item)
        except (LostLease, StoreUnavailable):
            raise
        except Exception as error:
            if self._for_other_workers(error):
                raise
            result = ItemResult.of(item, self.claim.request, None).failed(public_error(error, self.claim.slice_id))
        if result:
            self._committed(result, {})
        return result is not None

    def _rank(self, item: Item) -> bool:
        """Rank the layer's kernels on one image."""
        request, engine = self.claim.request, self.context.engine
        picture = self.inputs.picture(item.image)
        with telemetry.span("rank", model=request.model, layer=request.layer):
            maps = engine.call(engine.device.feature_maps, request.model, request.layer, picture, account=self.account)
        found, files = activations.measured(maps)
        own = {"weights": engine.device.weights(request.model), "device": engine.device.name, "note": self._note(item)}
        result = ItemResult.of(item, request, None).model_copy(update={**found, **own})
        self._committed(result, self._stored(files))
        return True

    def _note(self, item: Item, found: Answer | ItemResult | None = None, asked: Question | None = None) -> str | None:
        """The notes on the picture that was found, if any, and on what was ignored of the image's file."""
        own = note(found, asked, self.claim.request.methods) if found and asked else None
        return " ".join(filter(None, [own, *self.inputs.notes[item.image]])) or None

    def _check_deadline(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlinePassed("the deadline passed before a worker was free")

    def _for_other_workers(self, error: Exception) -> bool:
        """Whether other workers must run this slice, since the network or the layer is not available here."""
        request = self.claim.request
        missing = isinstance(error, ModelUnavailable | LayerNotCovered)
        return missing and not self.context.able(request.model, request.layer)

    def _reused(self, item: Item, question: Question) -> bool:
        """Commit the result of the same work by this or another job, if there is one. Returns whether there is."""
        found = self.context.records.same(self._fingerprint(item, question))
        if found is None:
            return False
        source, result, blobs = found
        self.context.transitions.check(self.claim)
        for digest in dict.fromkeys(blobs.values()):
            if source != self.claim.job_id and not self._with_retries(
                self.context.store.copy, source, digest, self.claim.job_id
            ):
                return False  # its job was removed, or the store was restored from a backup
        own = ItemResult.of(item, self.claim.request, question.kernel)
        mine = {name: getattr(own, name) for name in ("index", "image", "kernel", "rank")}
        mine |= {"note": self._note(item, result, question), "reused": True}
        self._committed(result.model_copy(update=mine), blobs)
        return True

    def _fingerprint(self, item: Item, question: Question) -> str:
        """The fingerprint of an item's work, including the notes on its image, which are part of the result."""
        device = self.context.engine.device
        own = question.fingerprint(device.weights(question.model), device.version)
        return ":".join([self.claim.owner, own, *self.inputs.notes[item.image]])

    def _commit(self, item: Item, question: Question, answer: Answer | KernelscopeError) -> None:
        result = ItemResult.of(item, self.claim.request, question.kernel)
        if isinstance(answer, KernelscopeError):
            if self._for_other_workers(answer):
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
        own = {"note": self._note(item, answer, question), "device": self.context.engine.device.name}
        blobs = self._stored(artifacts(answer, self.inputs.original(item.image)))
        completed = answer.stopped in ("converged", "budget")
        fingerprint = self._fingerprint(item, question) if completed else ""
        self._committed(result.model_copy(update={**facts(answer), **own}), blobs, fingerprint)

    def _committed(self, result: ItemResult, blobs: dict[str, str], fingerprint: str = "") -> None:
        self.context.transitions.commit(self.claim, result, blobs, fingerprint)
        self.context.telemetry.committed(self.claim.request.model, self.claim.request.layer, result)

    def _stored(self, artifacts: dict[str, bytes]) -> dict[str, str]:
        """Write the files before the item is committed, and only while the claim is valid. Returns their digests."""
        self.context.transitions.check(self.claim)
        digests = {name: BlobStore.digest(data) for name, data in artifacts.items()}
        for name, data in artifacts.items():
            if digests[name] not in self.written:
                self._with_retries(self.context.store.put, self.claim.job_id, data)
                self.written.add(digests[name])
        return digests

    def _with_retries(self, action: Callable[..., T], *arguments: Any) -> T:
        """Call an action of the object store, and retry while the store is unavailable and the slice is not stopped.

        Raises:
            StoreUnavailable: the store was unavailable when the slice was stopped.
        """
        while True:
            try:
                return action(*arguments)
            except StoreUnavailable as error:
                if self.stopped:
                    raise
                log.warning("%s: %s; retrying", self.claim.slice_id, error)
                time.sleep(STORE_RETRY_SECONDS)
