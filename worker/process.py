"""A worker process's life: load the networks, say so, run slices, hand back what is running when told to stop."""

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

from shared.alive import beat, forget
from shared.catalogue import Network
from shared.errors import KernelscopeError, StoreUnavailable
from shared.jobs import Records, Transitions, connect
from shared.settings import Settings
from shared.store import BlobStore
from shared.version import told
from shared.workers import HEARTBEAT_SECONDS, WorkerState, publish, retire, tell
from worker.engine.engine import Engine
from worker.engine.questions import Device, NoSuchDevice
from worker.jobs.pulse import Pulse
from worker.jobs.runner import Runner

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that one try of a Redis call may take
GRACE_SECONDS, LAST_SECONDS = 6.0, 2.0  # from SIGTERM until no more is waited for, and until the end, whatever happens
BROKEN_SECONDS = 30.0  # until a worker ends that never had a device that works
BROKEN, HUNG = 70, 71  # exit codes
LOOK_SECONDS = 60.0  # after which the store is asked again which one it is, and Redis told of networks again


class WorkerProcess:
    """What one process has: an engine, a runner, and a heartbeat.

    Args:
        announce: sends the message that a slice may be runnable: (slice id, queue).
    """

    def __init__(self, settings: Settings, announce: Callable[[str, str], None]) -> None:
        self.settings = settings
        self.redis = connect(settings.redis, patience=PATIENCE, persistent=True)
        self.device = make_device(settings)
        self.engine = Engine(self.device, on_broken=lambda _: self._broken())
        self.stopping = Event()
        self.ready = Event()
        self.started_at = time.time()
        self.exit_code = 0
        self.id = f"{socket.gethostname()}-{os.getpid()}"
        self.store = BlobStore(settings.store)
        self._identity: str | None = None
        self._looked_at = self._told_at = -math.inf
        self._told: list[Network] = []
        transitions = Transitions(self.redis, settings.lease_seconds)
        self.runner = Runner(
            engine=self.engine,
            pulse=Pulse(transitions, self.engine, on_hang=lambda: _end(HUNG)),
            records=Records(self.redis, self.store),
            transitions=transitions,
            store=self.store,
            worker=self.id,
            max_pixels=int(settings.max_megapixels * 1e6),
            announce=announce,
        )

    @property
    def slices(self) -> int:
        """How many slices it may hold at once."""
        return self.settings.slices or (8 if self.device.name in ("cpu", "dummy") else 64)

    def start(self) -> None:
        """Begin the heartbeat, then load the networks of the `preload` setting, those that can be had.

        A device that does not compute what it should takes no work: its worker ends after a while, so that its
        supervisor does not start it again and again.
        """
        Thread(target=self._beat, name="heartbeat", daemon=True).start()
        if not self.device.sound():
            log.critical(
                "the device %s fails its self-test; this worker takes no work and ends in %.0f s",
                self.device.name,
                BROKEN_SECONDS,
            )
            self.stopping.wait(BROKEN_SECONDS)
            self.gone()
            _end(BROKEN)
        if self.settings.worker_metrics_bind:
            self._tell()
        for name in self.settings.preload:
            try:
                self.device.preload(name)
            except KernelscopeError as error:
                log.warning("%s is not preloaded: %s", name, error)
            except Exception:  # a bug; the other networks can be served all the same
                log.exception("%s is not preloaded", name)

    def _tell(self) -> None:
        """Serve the metrics."""
        telemetry, engine = self.runner.telemetry, self.engine
        telemetry.watch("kernelscope_engine_items", "Items that the device works on.", lambda: engine.running)
        telemetry.watch("kernelscope_engine_steps", "Steps that the engine has made.", lambda: engine.steps)
        telemetry.watch("kernelscope_device_memory_bytes", "Memory that the device has in use.", self.device.memory)
        telemetry.serve(self.settings.worker_metrics_bind)

    def stop(self) -> None:
        """Hand back what is running. What cannot be stopped (a download, say) is handed back all the same."""
        if not self.stopping.is_set():
            self.stopping.set()
            Thread(target=self._give_up, name="grace", daemon=True).start()
            self.runner.stop()

    def close(self) -> None:
        """Wait for the device's present step, no longer than what is handed back is waited for.

        If Python ended meanwhile, the thread that computes would abort the process.
        """
        self.stop()
        self.engine.close()

    def _broken(self) -> None:
        """The device is good for nothing in this process, by its own fault or by that of what it ran.

        If it is its own, what was running here is handed back, and nothing of it is suspected. If a fresh process finds
        the device sound, the leases lapse: what was running is tried again, and suspected when it does this again.
        """
        self.stopping.set()
        self.runner.pulse.close()  # it would take this for a device that hangs
        if not self.device.sound():
            log.critical("the device %s fails its self-test; everything is handed back", self.device.name)
            self.runner.abandon()
        self.gone()
        _end(BROKEN)

    def _give_up(self) -> None:
        time.sleep(GRACE_SECONDS)
        log.warning("not everything could be stopped in %.0f s", GRACE_SECONDS)
        last = Thread(target=self._abandon, name="farewell", daemon=True)
        last.start()
        last.join(LAST_SECONDS)
        _end(self.exit_code)

    def _abandon(self) -> None:
        self.runner.abandon()
        self.gone()

    def gone(self) -> None:
        """Say goodbye, to a Redis that answers now."""
        try:
            with connect(self.settings.redis) as redis:
                retire(redis, self.id)
        except StoreUnavailable:
            log.warning("Redis does not answer; this worker is forgotten when its last heartbeat expires")

    def _beat(self) -> None:
        while not self.stopping.is_set():
            try:
                self._tell_networks()
                publish(self.redis, self._state())
                self._check_networks()
            except StoreUnavailable as error:
                log.warning("no heartbeat: %s", error)
            except Exception:  # of the weights folder, say; without this thread the worker would be taken for dead
                log.exception("no heartbeat")
            beat("worker")
            self.ready.wait(0.2) if not self.ready.is_set() else self.stopping.wait(HEARTBEAT_SECONDS)

    def _tell_networks(self) -> None:
        """Those that are registered, when one is new; and now and then, in case Redis has lost them."""
        networks = self.device.registered()
        if networks != self._told or time.monotonic() - self._told_at > LOOK_SECONDS:
            tell(self.redis, networks)
            self._told, self._told_at = networks, time.monotonic()

    def _check_networks(self) -> None:
        """What is loaded never changes; where a name stands for something else now, its supervisor starts this anew."""
        if (changed := self.device.outdated()) and self.ready.is_set():
            log.warning("%s: changed since it was loaded; this worker ends, to be started again", ", ".join(changed))
            os.kill(os.getpid(), signal.SIGTERM)

    def _state(self) -> WorkerState:
        return WorkerState(
            id=self.id,
            device=self.device.name,
            started_at=self.started_at,
            ready=self.ready.is_set(),
            networks=self.device.states(),
            store=self._store(),
            version=told(),
        )

    def _store(self) -> str | None:
        """The store's identity, as it was the last time that it was asked."""
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._identity = None
            with suppress(StoreUnavailable):
                self._identity = self.store.identity()
            self._looked_at = time.monotonic()
        return self._identity


def make_device(settings: Settings) -> Device:
    """The device that the settings ask for.

    Raises:
        NoSuchDevice: or the operator's own networks cannot be made; says why.
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
    """At once: threads that hang cannot be waited for. The supervisor starts the process again."""
    forget("worker")
    logging.shutdown()
    os._exit(code)
