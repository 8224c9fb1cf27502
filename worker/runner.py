"""One slice of a job: images → questions → answers → pictures → store → record. It knows jobs, not tensors' insides."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from threading import Event, Thread
from typing import Any

import numpy as np
from PIL import Image

from shared import images
from shared.errors import KernelscopeError, StoreUnavailable, UnknownImage
from shared.jobs import Claim, LostLease, Records, Transitions
from shared.schemas import Item, ItemResult, Stop
from shared.store import BlobStore
from worker.questions import Answer, Engine, Picture, Question, Step

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25  # the append-only file is synced at each write


@dataclass
class Runner:
    """Runs slices on one engine.

    Args:
        stopping: asked at every evaluation; once true, the slice is handed back to the queue.
    """

    engine: Engine
    records: Records
    transitions: Transitions
    store: BlobStore
    max_pixels: int
    announce: Callable[[str, str], None]
    stopping: Callable[[], bool]

    def run(self, slice_id: str) -> None:
        """Claim the slice and bring it to its end; a duplicate message finds nothing to claim."""
        claim = self.transitions.claim(slice_id)
        if claim is None:
            return
        log.info("%s: begun, attempt %d, %d items", slice_id, claim.attempt, len(claim.items))
        try:
            _SliceRun(self, claim).to_the_end()
        except LostLease:
            log.warning("%s: lost the lease; what is not committed is left to others", slice_id)
        except StoreUnavailable as error:
            log.warning("%s: %s; its lease will lapse and the slice be tried again", slice_id, error)

    def hand_back(self, claim: Claim) -> None:
        """The worker stops: somebody else shall go on after the last finished item."""
        self.transitions.release(claim)
        if queue := self.transitions.sent(claim.slice_id):
            self.announce(claim.slice_id, queue)
        log.info("%s: handed back", claim.slice_id)


@dataclass
class _SliceRun:
    runner: Runner
    claim: Claim
    reported: float = field(default=0.0)

    def to_the_end(self) -> None:
        try:
            with self._alive():
                questions = self._questions()
            self._answer(questions)
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

    def _answer(self, questions: list[tuple[Item, Question]]) -> None:
        answers = self.runner.engine.answer([question for _, question in questions], self._on_step, self._should_stop)
        for number, answer in answers:
            item, question = questions[number]
            self._commit(item, question.kernel, answer)
        if self.runner.stopping():
            self.runner.hand_back(self.claim)
        else:
            self.runner.transitions.finish(self.claim)

    def _questions(self) -> list[tuple[Item, Question]]:
        """The items with their kernels; ranks that no active kernel fills are skipped."""
        kernels = {item.index: self._kernel(item) for item in self.claim.items}
        if isinstance(self.claim.request.kernels, str):
            self.runner.transitions.resolve(self.claim, sum(kernel is None for kernel in kernels.values()))
        return [
            (item, self._question(item, kernel))
            for item in self.claim.items
            if (kernel := kernels[item.index]) is not None
        ]

    def _kernel(self, item: Item) -> int | None:
        if item.rank is None:
            return item.kernel
        ranking = self._rankings[item.image]
        return ranking[item.rank] if item.rank < len(ranking) else None

    def _question(self, item: Item, kernel: int) -> Question:
        request = self.claim.request
        return Question(
            model=request.model,
            layer=request.layer,
            picture=self._pictures[item.image],
            kernel=kernel,
            alpha=item.alpha,
            beta=item.beta,
            solver=request.solver,
            effort=request.effort,
            iterations=request.iterations,
            target_ssim=request.target_ssim,
            max_preservation=request.max_preservation,
        )

    @cached_property
    def _pictures(self) -> dict[int, Picture]:
        """By the image's number in the request: the network's input, (H, W, 3) in 8 bits."""
        size = self.runner.engine.input_size(self.claim.request.model)
        return {number: self._picture(self.claim.request.images[number], size) for number in self._numbers}

    @cached_property
    def _rankings(self) -> dict[int, list[int]]:
        request, engine = self.claim.request, self.runner.engine
        return {n: engine.ranking(request.model, request.layer, self._pictures[n]) for n in self._numbers}

    @property
    def _numbers(self) -> list[int]:
        return sorted({item.image for item in self.claim.items})

    def _picture(self, digest: str, size: int) -> Picture:
        data = self.runner.store.get(digest)
        if data is None:
            raise UnknownImage(f"the bytes of image {digest} are gone from the store")
        return np.asarray(images.resized(images.decode(data, self.runner.max_pixels), size))

    def _commit(self, item: Item, kernel: int, answer: Answer | KernelscopeError) -> None:
        result = ItemResult.of(item, self.claim.request, kernel)
        if isinstance(answer, KernelscopeError):
            self.runner.transitions.commit(self.claim, result.failed(answer), {})
        else:
            facts = {**_facts(answer), "device": self.runner.engine.device}
            self.runner.transitions.commit(
                self.claim, result.model_copy(update=facts), self._stored(_artifacts(answer))
            )

    def _stored(self, artifacts: dict[str, bytes]) -> dict[str, str]:
        """Blobs are referred to before they are written, and written before the item is committed."""
        digests = {name: BlobStore.digest(data) for name, data in artifacts.items()}
        self.runner.records.hold(self.claim.job_id, list(digests.values()), self.claim.expires_at)
        for data in artifacts.values():
            self.runner.store.put(data)
        return digests

    def _on_step(self, step: Step) -> None:
        now = time.monotonic()
        if now - self.reported >= PROGRESS_SECONDS:
            self.reported = now
            self._renew(asdict(step))

    def _renew(self, progress: dict[str, Any]) -> None:
        try:
            self.runner.transitions.renew(self.claim, progress)
        except StoreUnavailable:
            log.warning("%s: Redis does not answer; going on while the lease may hold", self.claim.slice_id)

    def _should_stop(self) -> Stop | None:
        return "cancelled" if self.runner.stopping() else None

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Keep the lease while there is nothing to report yet: a network is loaded, or downloaded."""
        done = Event()

        def renew() -> None:
            while not done.wait(self.runner.transitions.lease_seconds / 3):
                try:
                    self._renew({})
                except LostLease:
                    return

        thread = Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _facts(answer: Answer) -> dict[str, Any]:
    """The numbers of an answer, under the names that the contract gives them."""
    names = (
        "losses",
        "losses_float",
        "loss_start",
        "loss_blank",
        "metrics",
        "metrics_float",
        "target_met",
        "iterations",
        "seconds",
        "stopped",
        "precision",
        "weights",
    )
    return {name: getattr(answer, name) for name in names}


def _artifacts(answer: Answer) -> dict[str, bytes]:
    """The files that are committed with an item; pictures that only show them are drawn when first asked for."""
    png, npy, npz = BytesIO(), BytesIO(), BytesIO()
    Image.fromarray(answer.picture).save(png, "PNG")
    np.save(npy, answer.x)
    np.savez_compressed(npz, allow_pickle=False, **answer.maps)
    columns = ("iteration", "preservation", "suppression", "regularization", "total")
    history = json.dumps({"columns": columns, "rows": answer.history})
    return {
        "optimized.png": png.getvalue(),
        "optimized.npy": npy.getvalue(),
        "maps.npz": npz.getvalue(),
        "history.json": history.encode(),
    }
