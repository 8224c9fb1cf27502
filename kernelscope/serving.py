"""Which server a command talks to: the one that is named, else a private one that is there for this command only."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer
from rich.markup import escape

from kernelscope.client import Client
from kernelscope.stack import Stack, StackError, free_port
from kernelscope.terminal import err
from shared.settings import Settings

WATCH_SECONDS = 0.5

Url = Annotated[
    str | None, typer.Option(envvar="KERNELSCOPE_URL", help="Of a server, http://127.0.0.1:8000.", show_default=False)
]
Key = Annotated[str | None, typer.Option(envvar="KERNELSCOPE_API_KEY", help="API key, where the server needs one.")]
WeightsDir = Annotated[Path | None, typer.Option(help="Folder with weights files (vgg16.pth, vgg16-mine.safetensors).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")]


@contextmanager
def private_stack(settings: Settings, *preload: str) -> Iterator[Stack]:
    """A stack in a temporary folder, of which nothing is left at the end; its networks are those of the settings.

    Raises:
        StackError: it does not start.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
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
        settings = settings.model_copy(update={**own, "preload": preload})
        if networks:
            shutil.copytree(networks, Path(folder) / "store" / "networks")
        err.print("starting a private stack: Redis, worker, API …")
        with Stack(settings, err.print, _told).running() as stack, _watched(stack):
            yield stack


def _told(line: str) -> None:
    if not line.startswith("unavailable"):  # which the server tells too
        err.print(line)


@contextmanager
def _watched(stack: Stack) -> Iterator[None]:
    """Who dies meanwhile is started again; if that is of no use, this ends with the reason."""
    over, failures = Event(), list[StackError]()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            try:
                stack.watch()
            except StackError as error:
                failures.append(error)
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        if failures:
            raise failures[0] from None
        raise
    finally:
        over.set()
        thread.join()


def registered(settings: Settings) -> Path | None:
    """Where the networks lie that were added to this machine's object store; None where there are none."""
    address = urlsplit(settings.store)
    folder = Path(url2pathname(address.path)) / "networks"
    return folder if address.scheme == "file" and folder.is_dir() else None


@contextmanager
def server(url: str | None, key: str | None, weights_dir: Path | None, model: str | None) -> Iterator[Client]:
    """A client of the server that is named, else of a private one with this network (VGG16, unless one is named)."""
    if url:
        with Client(url, key) as client:
            yield client
        return
    settings = Settings(weights_dir=weights_dir) if weights_dir else Settings()
    with private_stack(settings, model or "vgg16") as stack, Client(stack.url) as client:
        yield client


def usable(client: Client, model: str | None) -> str:
    """The network that is named; else VGG16, or where its weights cannot be had the small one that comes with us."""
    if model:
        return model
    vgg16 = client.model("vgg16")
    if vgg16.available is not False:
        return "vgg16"
    err.print(f"[yellow]VGG-16 cannot be had here:[/yellow] {escape(vgg16.reason)}")
    err.print("network instead: vgg_mini, a small one that comes with Kernelscope; --model names another")
    return "vgg_mini"
