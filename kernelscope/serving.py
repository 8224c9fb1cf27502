"""Which server a command uses: the one that is named, else the stack that runs on this machine, else a private one."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, get_ident
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import typer

from kernelscope.client import Client, ServerUnreachable
from kernelscope.running import Running, free_port, running_in, url_of
from kernelscope.stack import Stack
from kernelscope.supervise import StackError, StackFailed, end_as_by_ctrl_c
from kernelscope.terminal import say
from shared import catalogue
from shared.advice import advice, named_in
from shared.settings import ENV_FILE, Settings

WATCH_SECONDS = 0.5
PATIENCE = 2.0  # seconds that a server may be away: a user waits at the terminal
STARTING_SECONDS = 90.0  # that a stack which is just starting may take


def _networks(incomplete: str) -> list[str]:
    return [name for name in catalogue.networks() if name.startswith(incomplete)]


Url = Annotated[
    str | None,
    typer.Option(
        envvar="KERNELSCOPE_URL",
        help="Server, such as http://127.0.0.1:8000. Default: the `kernelscope up` on this machine.",
        show_default=False,
    ),
]
Key = Annotated[str | None, typer.Option(envvar="KERNELSCOPE_API_KEY", help="API key, if the server needs one.")]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with weights files (vgg16.pth, vgg16-mine.safetensors) for a stack that this command starts."
    ),
]
DataDir = Annotated[Path | None, typer.Option(help="Data folder of `kernelscope up`.")]
Model = Annotated[  # once there is a server, `usable` decides which one it is
    str | None,
    typer.Option(
        "--model", "-m", help="Network; default: vgg16, or vgg_mini if vgg16 has no weights.", autocompletion=_networks
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else on stdout.")]


def local_settings(*, quiet: bool = False, **options: Any) -> Settings:
    """The settings of this machine, with the options of a command that are given.

    Args:
        quiet: without a line on stderr that says which `.env` they are from.
    """
    settings = Settings(**{name: value for name, value in options.items() if value is not None})
    if not quiet and named_in(ENV_FILE):
        say(f"settings from {ENV_FILE}")
    return settings


def warn(settings: Settings) -> None:
    """Print what is probably a mistake in the settings."""
    for sentence in advice(settings):
        say(f"warning: {sentence}")


def running_here(settings: Settings) -> Running | None:
    """The stack that runs in the data folder of these settings, and has a server."""
    found = running_in(settings.data_dir)
    return found if found and found.url else None


def is_kernelscope(url: str) -> bool:
    """Whether a Kernelscope server answers at a URL of this machine."""
    try:
        found = httpx.get(f"{url}/healthz", timeout=3, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return isinstance(found, dict) and found.get("status") == "alive"


def address(url: str | None) -> str:
    """The URL that is named, else that of the stack that runs on this machine, else where it would listen."""
    if url:
        return url
    settings = local_settings()
    found = running_here(settings)
    return found.url if found else url_of(settings.host, settings.port)


@contextmanager
def remote(url: str | None, key: str | None, patience: float = PATIENCE) -> Iterator[Client]:
    """A client of a server that runs already."""
    with Client(address(url), key, patience=patience) as client:
        yield client


@contextmanager
def server(
    url: str | None, key: str | None, weights_dir: Path | None, model: str | None, *, stays: bool = False
) -> Iterator[Client]:
    """A client of the server that is named, else of the stack that runs here, else of a private one.

    The private one has this network loaded (VGG-16, unless one is named). It is also what `weights_dir` is for.

    Args:
        stays: the server must outlive the command, so a private one will not do.

    Raises:
        StackError: the private one does not start, or would be needed although it will not do.
    """
    if url:
        with Client(url, key) as client:
            yield client
        return
    settings = local_settings(weights_dir=weights_dir)
    found = None if weights_dir else running_here(settings)
    if found:
        say(f"using the stack that runs here, {found.url}")
        with Client(found.url, key, patience=10 if found.ready else STARTING_SECONDS) as client:
            yield client
    elif stays:
        raise StackError("no server runs here that could continue the job: start `kernelscope up`, or give --url")
    else:
        other = url_of(settings.host, settings.port)
        if is_kernelscope(other):
            say(f"a server with another data folder answers at {other}; use it with --url {other}")
        with private_stack(settings, model or "vgg16") as stack, Client(stack.url) as client:
            yield client


@contextmanager
def private_stack(settings: Settings, *preload: str) -> Iterator[Stack]:
    """A stack in a temporary folder, which is deleted at the end; its networks are those of the settings.

    Raises:
        StackError: it does not start.
    """
    end_as_by_ctrl_c()
    with TemporaryDirectory(prefix="kernelscope-") as folder:
        own = {
            "data_dir": Path(folder),
            "store_url": "",
            "weights_dir": settings.weights,
            "port": free_port(),
            "host": "127.0.0.1",
            "access": "open",
        }
        networks = registered(settings)
        warn(settings)
        settings = settings.model_copy(update={**own, "preload": preload})
        if networks:
            shutil.copytree(networks, Path(folder) / "store" / "networks")
        say("starting a private stack: Redis, worker, API …")
        with Stack(settings, say, _weights_line, temporary=True).running() as stack, _watched(stack):
            yield stack


def _weights_line(line: str) -> None:
    if not line.startswith("unavailable"):  # the server reports that too
        say(line)


@contextmanager
def _watched(stack: Stack) -> Iterator[None]:
    """Restart processes that die during the block; if that does not help, the block ends at once.

    Raises:
        StackError: with the reason, and the end of the log.
    """
    over, failures = Event(), list[StackError]()
    here = get_ident()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            try:
                stack.watch()
            except StackError as error:
                failures.append(error)
                signal.pthread_kill(here, signal.SIGUSR1)
                return

    def end(*_: object) -> None:
        if not over.is_set():
            raise StackFailed(f"the private stack failed: {failures[0]}")

    before = signal.signal(signal.SIGUSR1, end)
    thread = Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:  # before any except clause: from here on the signal does nothing
            over.set()
    except (StackFailed, ServerUnreachable) as error:
        if failures:
            raise StackError(f"the private stack failed: {failures[0]}") from None
        logs = "\n".join(child.tail() for child in stack.children if child.name == "api")
        raise StackError(f"the private stack failed: {error}. The log of its API ends:\n{logs}") from None
    finally:
        over.set()  # if it was interrupted above
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def registered(settings: Settings) -> Path | None:
    """Where the networks are that were added to this machine's object store; None where there are none."""
    place = urlsplit(settings.store)
    folder = Path(url2pathname(place.path)) / "networks"
    return folder if place.scheme == "file" and folder.is_dir() else None


def usable(client: Client, model: str | None) -> str:
    """The network that a command takes: the one that is named; else VGG-16, or without its weights the small one."""
    if model:
        return model
    vgg16 = client.model("vgg16")
    if vgg16.available is not False:
        return "vgg16"
    say(f"VGG-16 is not available here: {vgg16.reason}")
    say("network instead: vgg_mini, a small one that comes with Kernelscope")
    return "vgg_mini"
