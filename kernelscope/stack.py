"""The local stack: a private Redis, the worker, the API and housekeeping, as child processes of this one.

They are started in order, watched, restarted when they die, and stopped in reverse order. Everything that lasts is in
the data folder, so the next start finds its jobs and pictures again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType

import httpx
from redis import Redis

from kernelscope import supervise
from kernelscope.localredis import COMPACT, answers, configured, redis_for, redis_server, url_in
from kernelscope.running import Lock, free_port, running_in, url_of, why_not_free
from kernelscope.supervise import Child, StackError
from shared.addresses import address
from shared.jobs import connect
from shared.settings import Settings

__all__ = [
    "COMPACT",
    "Child",
    "Stack",
    "StackError",
    "check_weights",
    "free_port",
    "redis_server",
    "running_in",
    "visible_cards",
]

READY_SECONDS = 300.0  # a slow disk reads gigabytes of torch; a child that dies is noticed at once
SLOW_SECONDS = 45.0  # after which a message says what is waited for
GRACE_SECONDS = 15.0


@dataclass
class Stack:
    """All processes of one machine.

    Args:
        settings: host, port and folders; its Redis and store are replaced by the stack's own.
        say: receives messages for the user.
        tell: receives a line on the weights of each network to load. They are searched for, and downloaded with a
            progress bar, before a worker starts; without it that is left to the worker.
        temporary: its folder is deleted at the end.
    """

    settings: Settings
    say: Callable[[str], None]
    tell: Callable[[str], None] | None = None
    temporary: bool = False
    children: list[Child] = field(default_factory=list)
    _lock: Lock | None = None

    @property
    def url(self) -> str:
        """Where the API listens."""
        return url_of(self.settings.host, self.settings.port)

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """Start everything, wait until it is ready, and stop everything at the end, whatever happens.

        Raises:
            StackError: a port in use, a missing binary, a child that does not start.
        """
        try:
            self.start()
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Start the children in order and wait until the API is ready and a worker has its networks."""
        self._take(self.url)
        if reason := why_not_free(self.settings.host, self.settings.port):
            raise StackError(
                f"cannot listen on {self.settings.host}:{self.settings.port} ({reason}); choose another port, for "
                f"example: kernelscope up --port {self.settings.port + 1}"
            )
        self._start_redis()
        self._launch(self._program("housekeeping", "api.housekeeping"))
        self._launch(self._program("api", "api"))
        if self.tell:
            for line in check_weights(self.settings):
                self.tell(line)
        for name, own in self._workers():
            self._launch(self._program(name, "worker", own))
        self._wait(self._ready, "the API and the worker")
        self._note(ready=True)

    @contextmanager
    def redis_alone(self) -> Iterator[Redis]:
        """A client of this data folder's Redis: that of the stack that runs there, else one that is started for now.

        Raises:
            StackError: it does not start.
        """
        directory = self.settings.data_dir
        found = running_in(directory)
        if found and found.url:
            with connect(self._redis_of_another(directory)) as redis:
                yield redis
            return
        try:
            self._take("")
            self._start_redis()
            with connect(self.environment["KERNELSCOPE_REDIS_URL"]) as redis:
                yield redis
        finally:
            self.stop()

    def _redis_of_another(self, directory: Path) -> str:
        end = time.monotonic() + GRACE_SECONDS
        while True:  # it may just be starting
            with suppress(OSError, KeyError):
                if answers(url := url_in(directory)):
                    return url
            if time.monotonic() > end:
                raise StackError(f"the Redis of the stack that runs in {directory} does not answer; see its logs there")
            time.sleep(0.1)

    def watch(self) -> None:
        """Restart what has died; stop retrying what dies at once every time.

        Raises:
            StackError: a child died five times in a row within 30 s of its start.
        """
        for child in self.children:
            if child.dead:
                self._restart(child)

    def stop(self) -> None:
        """Stop the children, the last started first, and release the data folder."""
        handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._kill)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        if hasattr(signal, "SIGHUP"):  # a terminal that is closed meanwhile does not interrupt the stopping
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            for child in reversed(self.children):
                child.stop(GRACE_SECONDS)
        finally:
            self.children.clear()
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._lock:
                self._lock.release()
                self._lock = None

    def _kill(self, *_: object) -> None:
        """A second Ctrl-C while stopping: at once."""
        for child in self.children:
            child.kill()

    def _take(self, url: str) -> None:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.settings.data_dir, url)
        lock.take(self.say)
        self._lock = lock

    def _note(self, *, ready: bool | None = None) -> None:
        if self._lock:
            self._lock.ready = self._lock.ready if ready is None else ready
            self._lock.write(self.children)

    def _launch(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        child.inherited = self._lock.descriptors if self._lock else ()
        child.temporary = self.temporary
        self.children.append(child)  # first: Ctrl-C may come at any moment
        child.start()
        self._note()

    def _restart(self, child: Child) -> None:
        self.say(f"{child.name} {child.ending}; starting it again{child.log_place}")
        child.restart()
        self._note()

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        began, reported = time.monotonic(), False
        while not ready():
            for child in self.children:
                if child.dead:
                    if child.code == 0:
                        self._restart(child)
                        continue
                    raise StackError(f"{child.name} {child.ending} before it was ready. {child.log_end}")
            waited = time.monotonic() - began
            if waited > SLOW_SECONDS and not reported:
                reported = True
                self.say(f"still waiting for {what} (logs: {self.settings.data_dir}/logs)")
            if waited > READY_SECONDS:
                ends = "".join(f"\n{child.name}: {child.log_end}" for child in self.children)
                raise StackError(f"{what} did not get ready in {READY_SECONDS:.0f} s.{ends}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and any(worker["ready"] for worker in answer.json()["workers"])

    def _start_redis(self) -> None:
        directory = self.settings.data_dir
        configuration = configured(directory)
        url = url_in(directory)
        self.environment = {
            "KERNELSCOPE_REDIS_URL": url,
            "KERNELSCOPE_DATA_DIR": str(directory.absolute()),
            "KERNELSCOPE_STORE_URL": self.settings.store,
            "KERNELSCOPE_HOST": self.settings.host,
            "KERNELSCOPE_PORT": str(self.settings.port),
            "KERNELSCOPE_ACCESS": self.settings.access,
            "KERNELSCOPE_WEIGHTS_DIR": str(self.settings.weights.absolute()),
            "KERNELSCOPE_PRELOAD": ",".join(self.settings.preload),
            "KERNELSCOPE_DOWNLOAD_WEIGHTS": str(self.settings.download_weights),
            "PYTHONUNBUFFERED": "1",
        }
        # By stdin: Redis reads * ? [ in a file's name as a pattern, and starts with its defaults where no file fits.
        log = directory / "logs" / "redis.log"
        self._launch(Child("redis", [redis_for(directory), "-"], {}, log, stdin=configuration))
        self._wait(lambda: answers(url), "Redis")

    def _program(self, name: str, module: str, own: Mapping[str, str] = MappingProxyType({})) -> Child:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        return Child(name, [sys.executable, "-m", module], {**self.environment, **own}, log)

    def _workers(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Name, environment of its own: with several cards, a worker for each."""
        cards = visible_cards() if self.settings.device == "auto" else []
        if len(cards) < 2:
            yield "worker", {}
        else:
            self.say(f"{len(cards)} cards: a worker for each")
            for number, card in enumerate(cards):
                own = {"CUDA_VISIBLE_DEVICES": card}
                if bind := self.settings.worker_metrics_bind:
                    host, port = address(bind)
                    own["KERNELSCOPE_WORKER_METRICS_BIND"] = f"{host}:{port + number}"
                yield f"worker-{number}", own


def visible_cards() -> list[str]:
    """Names of the NVIDIA cards that this process may use, as CUDA_VISIBLE_DEVICES takes them; without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if named is None and program:
        query = [program, "--query-gpu=uuid", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        named = ",".join(found.stdout.split()) if found.returncode == 0 else ""
    # CUDA ends the list at the first that does not exist.
    return list(takewhile(lambda card: card and card != "-1", (card.strip() for card in (named or "").split(","))))


def check_weights(settings: Settings) -> list[str]:
    """Find, or download with a progress bar, the weights of the networks to load; a line on each."""
    if not settings.preload:
        return []
    environment = {
        "KERNELSCOPE_WEIGHTS_DIR": str(settings.weights.absolute()),
        "KERNELSCOPE_DOWNLOAD_WEIGHTS": str(settings.download_weights),
        "KERNELSCOPE_STORE_URL": settings.store,
    }
    command = [sys.executable, "-m", "worker.weights", *settings.preload]
    with supervise.interrupts_deferred():
        checking = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
            start_new_session=True,  # it is stopped below, once, and has time to remove what it has downloaded in part
            preexec_fn=supervise.die_with_parent if supervise.TIED_TO_PARENT else None,
        )
    with checking as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
            raise
    return printed.splitlines()
