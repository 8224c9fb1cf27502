"""One slice of a job: images → questions → answers → pictures → store → record. It knows jobs, not tensors' insides."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from shared import images, logs
from shared.errors import DeadlinePassed, KernelscopeError, StoreUnavailable, UnknownImage
from shared.jobs import Claim, LostLease, Records, Sign, Transitions
from shared.schemas import Item, ItemResult
from shared.store import BlobStore
from worker import activations
from worker.artifacts import artifacts, facts, note
from worker.engine import Asked, Engine
from worker.previews import Previews
from worker.pulse import Pulse
from worker.quarantine import Quarantine
from worker.questions import Answer, Picture, Question, Step, Ticket
from worker.telemetry import Telemetry

log = logging.getLogger(__name__)

T = TypeVar("T")

SOLVING = ("solver", "effort", "iterations", "target_ssim", "max_preservation")
OPTIONS = {  # of a request, by the methods that have more than `scaling`
    "suppression": (*SOLVING, "only_remove"),
    "evidence": (*SOLVING, "gamma", "max_invention"),
    "lrp": ("rule", "scaling"),
}
STORE_RETRY_SECONDS = 0.5  # between two tries of an object store that is away
TERMS = ("preservation", "suppression", "regularization", "total")


@dataclass
class Runner:
    """Runs slices on one engine, each in a thread of its own.

    Args:
        worker: its name.
        max_attempts: of a slice; one that is suspected of killing workers runs alone.
        announce: sends the message that a slice may be runnable: (slice id, queue).
    """

    engine: Engine
    pulse: Pulse
    records: Records
    transitions: Transitions
    store: BlobStore
    worker: str
    max_pixels: int
    max_attempts: int
    announce: Callable[[str, str], None]
    telemetry: Telemetry = field(default_factory=Telemetry)
    quarantine: Quarantine = field(default_factory=Quarantine)
    stopping: bool = False
    decoding: Lock = field(default_factory=Lock)  # one image at a time: 50 megapixels may take a gigabyte
    _running: set[_SliceRun] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def run(self, slice_id: str) -> None:
        """Claim the slice and bring it to its end; a duplicate message finds nothing to claim."""
        with self.quarantine.together():
            if not self.transitions.suspected(slice_id, self.max_attempts):
                self._claim(slice_id)
                return
        with self.quarantine.alone():
            self._claim(slice_id)

    def stop(self) -> None:
        """Hand back everything that runs; take nothing more."""
        with self._lock:
            self.stopping = True
            running = list(self._running)
        for run in running:
            run.end()

    def abandon(self) -> None:
        """Hand back what does not let itself be stopped; its thread can write nothing from here on."""
        with self._lock:
            running = list(self._running)
        for run in running:
            with suppress(LostLease):
                self.hand_back(run.claim)

    def hand_back(self, claim: Claim) -> None:
        """Somebody else shall go on after the last finished item."""
        self.transitions.release(claim)
        self._announce(claim.slice_id)
        log.info("%s: handed back", claim.slice_id)

    def _announce(self, slice_id: str) -> None:
        if queue := self.transitions.sent(slice_id):
            self.announce(slice_id, queue)

    def _claim(self, slice_id: str) -> None:
        if self.stopping:
            self._announce(slice_id)
        elif claim := self.transitions.claim(slice_id, self.worker):
            self._run(claim)

    def _run(self, claim: Claim) -> None:
        with logs.bound(job_id=claim.job_id, slice=claim.slice_id.rpartition(":")[2]):
            self._run_bound(claim)

    def _run_bound(self, claim: Claim) -> None:
        log.info("%s: begun, attempt %d, %d items", claim.slice_id, claim.attempt, len(claim.items))
        run = _SliceRun(self, claim)
        with self._lock:
            self._running.add(run)
        self.pulse.take(run)
        try:
            run.to_the_end()
        except LostLease:
            log.warning("%s: cancelled, or lost to another worker; what is not committed is dropped", claim.slice_id)
        except StoreUnavailable as error:
            if self.stopping:
                with suppress(LostLease, StoreUnavailable):
                    self.hand_back(claim)
                return
            log.warning("%s: %s; its lease will lapse and the slice be tried again", claim.slice_id, error)
        finally:
            self.pulse.let_go(run)
            with self._lock:
                self._running.discard(run)


@dataclass(eq=False)
class _SliceRun:
    runner: Runner
    claim: Claim
    asked: Asked | None = None
    open: list[Item] = field(default_factory=list)  # the items of the questions that are asked
    lost: bool = False
    ended: bool = False
    watched: bool = False
    previews: Previews = field(default_factory=Previews)
    pictures: dict[int, Picture] = field(default_factory=dict)  # by the image's number in the request
    rankings: dict[int, list[int]] = field(default_factory=dict)

    def to_the_end(self) -> None:
        try:
            if self.claim.request.methods == ["activations"]:
                self._rank()
            else:
                self._answer(self._questions())
        except (LostLease, StoreUnavailable):
            raise
        except KernelscopeError as error:
            self.runner.transitions.fail(self.claim, error)
        except Exception as error:  # a bug: the job says so, the log says where
            log.exception("%s failed", self.claim.slice_id)
            kind = type(error).__name__
            self.runner.transitions.fail(
                self.claim, KernelscopeError(f"internal error ({kind}); the worker's log has the details")
            )
        finally:
            if self.asked:  # nobody waits for the rest
                self.asked.withdraw()

    @property
    def in_engine(self) -> bool:
        return self.asked is not None

    def sign(self) -> Sign:
        running = self._in_work()
        previews = self.previews.new(running, wanted=self.watched)
        steps = {index: ticket.step for index, ticket in running.items() if ticket.step}
        return Sign(self.claim, self._progress(steps), previews)

    def _in_work(self) -> dict[int, Ticket]:
        """By the item's index."""
        open_ = zip(self.open, self.asked.tickets, strict=True) if self.asked else ()
        return {item.index: ticket for item, ticket in open_ if not ticket.answered}

    def _progress(self, steps: dict[int, Step]) -> dict[str, Any]:
        """Of the items that run now: the evaluations done, the most that they may take, their mean loss; and each."""
        if not steps:
            return {}
        return {
            "iteration": max(step.iteration for step in steps.values()),
            "budget": max(step.budget for step in steps.values()),
            "loss": sum(step.terms[-1] for step in steps.values()) / len(steps),
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

    def lose(self) -> None:
        self.lost = True
        self.end()

    def end(self) -> None:
        """Stop waiting for the engine."""
        self.ended = True
        if self.asked:
            self.asked.withdraw()

    def _answer(self, questions: list[tuple[Item, Question]]) -> None:
        engine = self.runner.engine
        self._check_deadline()
        open_ = [(item, question) for item, question in questions if not self._reused(item, question)]
        self.open = [item for item, _ in open_]
        small = self.claim.queue == "interactive"
        self.asked = engine.ask([question for _, question in open_], urgent=small, deadline=self.claim.deadline)
        if self.ended or self.runner.stopping:  # told so before there was anything to withdraw
            self.asked.withdraw()
        left = len(open_)
        for number, answer in self.asked:
            self._commit(*open_[number], answer)
            left -= 1
        self.asked = None
        if self.lost:
            raise LostLease(self.claim.slice_id)
        if left:
            self.runner.hand_back(self.claim)
        else:
            self.runner.transitions.finish(self.claim)

    def _rank(self) -> None:
        """Of each image, how active the layer's kernels are."""
        for item in self.claim.items:
            if self.lost:
                raise LostLease(self.claim.slice_id)
            if self.ended or self.runner.stopping:
                self.runner.hand_back(self.claim)
                return
            self._check_deadline()
            self._rank_one(item)
        self.runner.transitions.finish(self.claim)

    def _rank_one(self, item: Item) -> None:
        request, engine = self.claim.request, self.runner.engine
        maps = engine.call(engine.device.feature_maps, request.model, request.layer, self._picture(item.image))
        found, files = activations.measured(maps)
        own = {"weights": engine.device.weights(request.model), "device": engine.device.name}
        result = ItemResult.of(item, request, None).model_copy(update={**found, **own})
        self._committed(result, self._stored(files))

    def _check_deadline(self) -> None:
        if self.claim.deadline is not None and time.time() >= self.claim.deadline:
            raise DeadlinePassed("the deadline passed before a worker was free")

    def _questions(self) -> list[tuple[Item, Question]]:
        """The items with their kernels; ranks that no active kernel fills are skipped."""
        kernels = {item.index: self._kernel(item) for item in self.claim.items}
        if isinstance(self.claim.request.kernels, str):
            self.runner.transitions.resolve(
                self.claim, [item for item in self.claim.items if kernels[item.index] is None]
            )
        return [
            (item, self._question(item, kernel))
            for item in self.claim.items
            if (kernel := kernels[item.index]) is not None
        ]

    def _kernel(self, item: Item) -> int | None:
        if item.rank is None:
            return item.kernel
        ranking = self._ranking(item.image)
        return ranking[item.rank] if item.rank < len(ranking) else None

    def _question(self, item: Item, kernel: int) -> Question:
        """What the item's method does not look at is left at its default, so that the same work is found again."""
        request = self.claim.request
        options = {name: getattr(request, name) for name in OPTIONS.get(item.method, ("scaling",))}
        return Question(
            model=request.model,
            layer=request.layer,
            picture=self._picture(item.image),
            kernel=kernel,
            alpha=item.alpha,
            beta=item.beta,
            method=item.method,
            **options,
        )

    def _picture(self, number: int) -> Picture:
        """The network's input of an image of the request, (H, W, 3) in 8 bits.

        Kept in the slice by hand: before Python 3.12 one lock is all slices' in a cached_property, and one that waits
        for its network to be downloaded would keep the others waiting.
        """
        if number not in self.pictures:
            size = self.runner.engine.device.input_size(self.claim.request.model)
            self.pictures[number] = self._decoded(self.claim.request.images[number], size)
        return self.pictures[number]

    def _ranking(self, number: int) -> list[int]:
        """The layer's active kernels on that image."""
        if number not in self.rankings:
            request, engine = self.claim.request, self.runner.engine
            self.rankings[number] = engine.call(
                engine.device.ranking, request.model, request.layer, self._picture(number)
            )
        return self.rankings[number]

    def _decoded(self, digest: str, size: int) -> Picture:
        data = self._patiently(lambda: self.runner.store.get(digest))
        if data is None:
            raise UnknownImage(f"the bytes of image {digest} are gone from the store")
        with self.runner.decoding:
            return np.asarray(images.resized(images.decode(data, self.runner.max_pixels), size))

    def _reused(self, item: Item, question: Question) -> bool:
        """Whether the same work was done before, by this job or another: then its result is this item's too."""
        records = self.runner.records
        fingerprint = self._fingerprint(question)
        found = records.same(fingerprint)
        if found is None:
            return False
        result, blobs = found
        records.hold(self.claim.job_id, list(blobs.values()), self.claim.expires_at)
        if records.same(fingerprint) is None:  # it was removed before our hold, and its blobs with it
            return False
        if not all(self._patiently(partial(self.runner.store.has, digest)) for digest in blobs.values()):
            return False  # the store is another one than then, or was restored from before
        own = ItemResult.of(item, self.claim.request, question.kernel)
        mine = {name: getattr(own, name) for name in ("index", "image", "kernel", "rank")}
        self._committed(result.model_copy(update={**mine, "reused": True}), blobs)
        return True

    def _fingerprint(self, question: Question) -> str:
        device = self.runner.engine.device
        own = question.fingerprint(device.weights(question.model), device.version)
        return f"{self.claim.owner}:{own}"

    def _commit(self, item: Item, question: Question, answer: Answer | KernelscopeError) -> None:
        result = ItemResult.of(item, self.claim.request, question.kernel)
        if isinstance(answer, KernelscopeError):
            self._committed(result.failed(answer), {})
            return
        found = {**facts(answer), "note": note(answer, question), "device": self.runner.engine.device.name}
        blobs = self._stored(artifacts(answer))
        whole = answer.stopped in ("converged", "budget")
        fingerprint = self._fingerprint(question) if whole else ""
        self._committed(result.model_copy(update=found), blobs, fingerprint)

    def _committed(self, result: ItemResult, blobs: dict[str, str], fingerprint: str = "") -> None:
        self.runner.transitions.commit(self.claim, result, blobs, fingerprint)
        self.runner.telemetry.committed(self.claim.request.model, self.claim.request.layer, result)

    def _stored(self, artifacts: dict[str, bytes]) -> dict[str, str]:
        """Blobs are referred to before they are written, and written before the item is committed."""
        digests = {name: BlobStore.digest(data) for name, data in artifacts.items()}
        self.runner.records.hold(self.claim.job_id, list(digests.values()), self.claim.expires_at)
        for data in artifacts.values():
            self._patiently(partial(self.runner.store.put, data))
        return digests

    def _patiently(self, action: Callable[[], T]) -> T:
        """What the object store does: one that is away is sat out while the lease is held, however long that is.

        Raises:
            StoreUnavailable: the slice is to end meanwhile.
        """
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                if self.ended or self.runner.stopping:
                    raise
                log.warning("%s: %s; trying again", self.claim.slice_id, error)
                time.sleep(STORE_RETRY_SECONDS)
