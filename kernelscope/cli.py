"""`kernelscope`: the command line. Each command is a function of its own module."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from kernelscope import demo as demonstration
from kernelscope.asking import cancel, jobs, retry
from kernelscope.client import ClientError
from kernelscope.datasets import datasets
from kernelscope.doctor import doctor
from kernelscope.explain import activations, explain
from kernelscope.export import export
from kernelscope.keys import keys
from kernelscope.models import models
from kernelscope.serving import Key, Url, WeightsDir
from kernelscope.stack import Stack, StackError
from kernelscope.surveys import surveys
from shared.errors import KernelscopeError
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
console = Console(highlight=False)

DataDir = Annotated[Path | None, typer.Option(help="Where Redis, pictures and logs are kept.")]


@app.callback()
def kernelscope() -> None:
    """Shows what any convolution kernel of a trained CNN responds to in a given image."""


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: DataDir = None,
    weights_dir: WeightsDir = None,
    preload: Annotated[str | None, typer.Option(help="Networks to load at the start, separated by commas.")] = None,
) -> None:
    """Run everything on this machine: a private Redis, the worker, the API. Ctrl-C stops all of it.

    Example: kernelscope up --port 8080 --weights-dir ~/weights
    """
    settings = _settings(host=host, port=port, data_dir=data_dir, weights_dir=weights_dir, preload=preload)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Stack(settings, console.print, console.print).running() as stack:
            console.print(f"Kernelscope listens on [bold]{stack.url}[/bold]")
            if settings.access == "auto" and not settings.behind_proxy:
                console.print("this machine needs no key until one is made; before a proxy see docs/deployment.md")
            console.print(f"data in {settings.data_dir}; Ctrl-C stops everything")
            while True:
                time.sleep(0.5)
                stack.watch()
    except KeyboardInterrupt:
        console.print("stopped; `kernelscope up` finds its jobs and pictures again")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("demo"),
    weights_dir: WeightsDir = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Explain kernels on two pictures, through the HTTP API of a server or of a private stack; write the figures.

    Example: kernelscope demo -o /tmp/figures
    """
    demonstration.run(_settings(weights_dir=weights_dir), out, console, url, key)


@app.command()
def mcp(url: Url = None, key: Key = None) -> None:
    """Give a server's tools to language models, by the Model Context Protocol on stdin and stdout.

    For the settings of an assistant that starts such programs; needs the extra `mcp`.

    Example: kernelscope mcp --url http://127.0.0.1:8000
    """
    try:
        from kernelscope.agents import serve
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        _complain("this needs the extra `mcp`, which is not installed here: pip install 'kernelscope[mcp]'")
        raise typer.Exit(1) from error
    serve(url, key)


for command in (explain, activations, export, jobs, cancel, retry, doctor):
    app.command()(command)
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(surveys, name="surveys")


def main() -> None:
    """Run a command: our own errors are a line on stderr and exit code 1."""
    try:
        app()
    except ValidationError as error:  # of the settings
        for one in error.errors():
            name = "KERNELSCOPE_" + "_".join(map(str, one["loc"])).upper()
            _complain(f"{name}: {one['msg']}; `kernelscope doctor` looks at the rest")
        sys.exit(1)
    except (StackError, demonstration.DemoError, KernelscopeError, ClientError) as error:
        _complain(str(error))
        sys.exit(1)


def _complain(text: str) -> None:
    message = Text("kernelscope: ", style="red").append(text, style="default")
    Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def _settings(**options: Any) -> Settings:
    return Settings(**{name: value for name, value in options.items() if value is not None})
