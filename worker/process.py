"""The life cycle of a worker process: load networks, publish a heartbeat, run slices, release them when it stops."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from shared.alive import beat, stop
from shared.catalogue import Network
from shared.errors import KernelscopeError, StoreUnavailable
from shared.jobs import Records, Transitions, connect
from shared.settings import Settings
from shared.store import BlobStore
from shared.version import version_text
from shared.workers import HEARTBEAT_SECONDS, WorkerState, publish, register, retire
from worker.engine.engine import Engine
from worker.engine.questions import Device, NoSuchDevice
from worker.jobs.leases import LeaseRenewer
from worker.jobs.runner import SliceRunner

log = logging.getLogger(__name__)

REDIS_TIMEOUT = 5.0  # seconds of one attempt of a Redis call
GRACE_SECONDS, LAST_SECONDS = 6.0, 2.0  # from SIGTERM to a forced release of slices, and from there to the exit
BROKEN_SECONDS = 30.0  # until a worker whose device fails its first self-test ends
BROKEN, HUNG = 70, 71  # exit codes
REFRESH_SECONDS = 60.0  # after which the store's identity is read, and the networks are published, again


class WorkerProcess:
    """A worker process: an engine, a slice runner, and a heartbeat.

    Args:
        settings: of the process.
        announce: sends the message that a slice may be runnable: (slice id, queue).
    """

    def __init__(self, settings: Settings, announce: Callable[[str, str], None]) -> None:
        self.settings = settings
        self.redis = connect(settings.redis, patience=REDIS_TIMEOUT, persistent=True)
        self.device = make_device(settings)
        self.engine = Engine(self.device, on_broken=lambda _: self._broken())
        self.stopping = Event()
        self.ready = Event()
        self.started_at = time.time()
        self.exit_code = 0
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.store = BlobStore(settings.store)
        self._identity: str | None = None
        self._identified_at = self._published_at = -math.inf
        self._published: list[Network] = []
        transitions = Transitions(self.redis, settings.lease_seconds)
        self.runner = SliceRunner(
            engine=self.engine,
            leases=LeaseRenewer(transitions, self.engine, on_hang=lambda: _end(HUNG)),
            records=Records(self.redis, self.store),
            transitions=transitions,
            store=self.store,
            worker=self.id,
            max_pixels=int(settings.max_megapixels * 1e6),
            announce=announce,
        )

    @property
    def slices(self) -> int:
        """How many slices it may run at once."""
        return self.settings.slices or (8 if self.device.name in ("cpu", "dummy") else 64)

    def start(self) -> None:
        """Start the heartbeat, then load the available networks of the `preload` setting.

        A worker whose device fails its self-test takes no work. It ends after a delay, which limits how often its
        supervisor restarts it.
        """
        Thread(target=self._beat, name="heartbeat", daemon=True).start()
        if not self.device.sound():
            log.critical(
                "the device %s fails its self-test; this worker takes no work and ends in %.0f s",
                self.device.name,
                BROKEN_SECONDS,
            )
            self.stopping.wait(BROKEN_SECONDS)
            self.deregister()
            _end(BROKEN)
        if self.settings.worker_metrics_bind:
            self._serve_metrics()
        for name in self.settings.preload:
            try:
                self.device.preload(name)
            except KernelscopeError as error:
                log.warning("%s is not preloaded: %s", name, error)
            except Exception:  # a bug; the other networks can still be served
                log.exception("%s is not preloaded", name)

    def _serve_metrics(self) -> None:
        """Serve the metrics."""
        telemetry, engine = self.runner.telemetry, self.engine
        telemetry.watch("kernelscope_engine_items", "Items that the device works on.", lambda: engine.running)
        telemetry.watch("kernelscope_engine_steps", "Steps that the engine has made.", lambda: engine.steps)
        telemetry.watch("kernelscope_device_memory_bytes", "Memory that the device has in use.", self.device.memory)
        telemetry.serve(self.settings.worker_metrics_bind)

    def stop(self) -> None:
        """Stop and release all slices; those that cannot be stopped, for example during a download, after a delay."""
        if not self.stopping.is_set():
            self.stopping.set()
            Thread(target=self._force_exit, name="grace", daemon=True).start()
            self.runner.stop()

    def close(self) -> None:
        """Stop, and wait for the device's present step, at most for the grace period.

        If Python exited earlier, the engine's thread would abort the process.
        """
        self.stop()
        self.engine.close()

    def _broken(self) -> None:
        """End the process, because its device cannot be used any more.

        If the device also fails its self-test in a new process, the slices are released. If it passes, one of the
        slices may have caused the failure: their leases expire, so that they are retried, and are suspected if this
        happens again.
        """
        self.stopping.set()
        self.runner.leases.close()  # otherwise it would report that the device hangs
        if not self.device.sound():
            log.critical("the device %s fails its self-test; all slices are released", self.device.name)
            self.runner.abandon()
        self.deregister()
        _end(BROKEN)

    def _force_exit(self) -> None:
        time.sleep(GRACE_SECONDS)
        log.warning("not all slices stopped within %.0f s; they are released", GRACE_SECONDS)
        last = Thread(target=self._abandon, name="release", daemon=True)
        last.start()
        last.join(LAST_SECONDS)
        _end(self.exit_code)

    def _abandon(self) -> None:
        self.runner.abandon()
        self.deregister()

    def deregister(self) -> None:
        """Remove this worker from Redis, if Redis is available."""
        try:
            with connect(self.settings.redis) as redis:
                retire(redis, self.id)
        except StoreUnavailable:
            log.warning("Redis is unavailable; this worker is removed when its last heartbeat expires")

    def _beat(self) -> None:
        while not self.stopping.is_set():
            try:
                self._publish_networks()
                self.device.retry()
                publish(self.redis, self._state())
                self._check_networks()
            except StoreUnavailable as error:
                log.warning("no heartbeat: %s", error)
            except (
                Exception
            ):  # for example of the weights folder; without heartbeats the worker would be regarded as dead
                log.exception("no heartbeat")
            beat("worker")
            self.ready.wait(0.2) if not self.ready.is_set() else self.stopping.wait(HEARTBEAT_SECONDS)

    def _publish_networks(self) -> None:
        """Publish the registered networks after a change, and every minute in case Redis has lost them."""
        networks = self.device.registered()
        if networks != self._published or time.monotonic() - self._published_at > REFRESH_SECONDS:
            register(self.redis, networks)
            self._published, self._published_at = networks, time.monotonic()

    def _check_networks(self) -> None:
        """End the process if a loaded network has changed; its supervisor starts it again, and it loads the new one."""
        if (changed := self.device.outdated()) and self.ready.is_set():
            log.warning(
                "%s: changed since it was loaded; this worker ends, so that its supervisor restarts it",
                ", ".join(changed),
            )
            os.kill(os.getpid(), signal.SIGTERM)

    def _state(self) -> WorkerState:
        return WorkerState(
            id=self.id,
            device=self.device.name,
            started_at=self.started_at,
            ready=self.ready.is_set(),
            networks=self.device.states(),
            store=self._store(),
            version=version_text(),
        )

    def _store(self) -> str | None:
        """The store's identity, cached for a minute; None if the store was unavailable."""
        if time.monotonic() - self._identified_at > REFRESH_SECONDS:
            self._identity = None
            with suppress(StoreUnavailable):
                self._identity = self.store.identity()
            self._identified_at = time.monotonic()
        return self._identity


def make_device(settings: Settings) -> Device:
    """The device of the settings.

    Raises:
        NoSuchDevice: the device is not available, or the operator's own networks cannot be created.
    """
    if settings.engine == "dummy":
        from worker.engine.dummy import DummyDevice

        return DummyDevice()
    from worker.engine.accelerator import choose, limit_threads_to_quota
    from worker.engine.device import TorchDevice
    from worker.networks.loaded import Networks
    from worker.networks.own import own_networks
    from worker.networks.registry import Registry
    from worker.networks.weights import cached

    device = choose(settings.device, settings.gpu_memory_share)
    log.info("device: %s, %d threads", device, limit_threads_to_quota())
    registry = Registry(BlobStore(settings.store), cached())
    try:
        own = own_networks(settings.models)
    except ValueError as error:
        raise NoSuchDevice(str(error)) from error
    return TorchDevice(Networks(settings.weights, device, registry, own, download=settings.download_weights))


def _end(code: int) -> None:
    """Exit at once, without waiting for threads that may hang. The supervisor restarts the process."""
    stop("worker")
    logging.shutdown()
    os._exit(code)
