"""A worker process's life: load the networks, say so, run slices, hand back what is running when told to stop."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from threading import Event, Thread

from shared.errors import KernelscopeError, StoreUnavailable
from shared.jobs import Records, Transitions, connect
from shared.settings import Settings
from shared.store import BlobStore
from shared.workers import HEARTBEAT_SECONDS, WorkerState, publish, retire
from worker.questions import Engine
from worker.runner import Runner

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that a Redis call of a worker may take, a restart of Redis included


class WorkerProcess:
    """What one process has: an engine, a runner, and a heartbeat.

    Args:
        announce: sends the message that a slice may be runnable: (slice id, queue).
    """

    def __init__(self, settings: Settings, announce: Callable[[str, str], None]) -> None:
        self.settings = settings
        self.redis = connect(settings.redis_url.get_secret_value(), patience=PATIENCE)
        self.engine = make_engine(settings)
        self.stopping = Event()
        self.ready = Event()
        self.started_at = time.time()
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.runner = Runner(
            engine=self.engine,
            records=Records(self.redis),
            transitions=Transitions(self.redis, settings.lease_seconds),
            store=BlobStore(settings.store),
            max_pixels=int(settings.max_megapixels * 1e6),
            announce=announce,
            stopping=self.stopping.is_set,
        )

    def start(self) -> None:
        """Begin the heartbeat, then load the networks of the `preload` setting, those that can be had."""
        Thread(target=self._beat, name="heartbeat", daemon=True).start()
        # In a thread that ends: OpenMP keeps helpers for each thread that has run torch, and once there are more of
        # them than cores they sleep between operations, which made an evaluation of conv1_1 half as fast.
        loader = Thread(target=self._preload, name="preload")
        loader.start()
        loader.join()

    def _preload(self) -> None:
        for name in self.settings.preload:
            try:
                self.engine.preload(name)
            except KernelscopeError as error:
                log.warning("%s is not preloaded: %s", name, error)

    def stop(self) -> None:
        """Hand back what is running; the solver asks at its next evaluation."""
        self.stopping.set()

    def gone(self) -> None:
        """Say goodbye."""
        try:
            retire(self.redis, self.id)
        except StoreUnavailable:
            log.warning("Redis does not answer; this worker is forgotten when its last heartbeat expires")

    def _beat(self) -> None:
        while not self.stopping.is_set():
            try:
                publish(self.redis, self._state())
            except StoreUnavailable as error:
                log.warning("no heartbeat: %s", error)
            self.ready.wait(0.2) if not self.ready.is_set() else self.stopping.wait(HEARTBEAT_SECONDS)

    def _state(self) -> WorkerState:
        return WorkerState(
            id=self.id,
            device=self.engine.device,
            started_at=self.started_at,
            ready=self.ready.is_set(),
            networks=self.engine.states(),
        )


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for."""
    if settings.engine == "dummy":
        from worker.dummy import DummyEngine

        return DummyEngine()
    import torch

    from worker.engine import TorchEngine
    from worker.networks import Networks

    device = torch.device(_best_device() if settings.device == "auto" else settings.device)
    log.info("device: %s, %d threads", device, torch.get_num_threads())
    return TorchEngine(Networks(settings.weights, device, download=settings.download_weights))


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
