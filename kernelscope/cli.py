"""`kernelscope`: the command line. Each command is a function of its own module."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from kernelscope import demo as demonstration
from kernelscope.asking import cancel, jobs, retry
from kernelscope.client import ClientError
from kernelscope.datasets import datasets
from kernelscope.doctor import doctor, named
from kernelscope.explain import activations, explain
from kernelscope.export import export
from kernelscope.following import delete, get, save_, wait
from kernelscope.keys import keys
from kernelscope.models import models
from kernelscope.serving import AsJson, Key, Url, WeightsDir, address, local_settings, warn
from kernelscope.stack import Stack
from kernelscope.supervise import StackError, StackFailed, end_as_by_ctrl_c
from kernelscope.surveys import surveys
from kernelscope.terminal import complain, out, say
from shared.errors import KernelscopeError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

DataDir = Annotated[Path | None, typer.Option(help="Folder for Redis, pictures and logs.")]


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

    Exit code 0: it was stopped, by Ctrl-C, SIGTERM or a closed terminal; 1: it could not start, or continue.

    Example: kernelscope up --port 8080 --weights-dir ~/weights
    """
    settings = local_settings(host=host, port=port, data_dir=data_dir, weights_dir=weights_dir, preload=preload)
    warn(settings)
    end_as_by_ctrl_c()
    try:
        with Stack(settings, _line, _line).running() as stack:
            _line(f"Kernelscope listens on {stack.url}")
            if settings.access == "auto" and not settings.behind_proxy:
                _line("requests from this machine need no key until one is made; behind a proxy see docs/deployment.md")
            _line(f"data in {settings.data_dir}; Ctrl-C stops everything")
            while True:
                time.sleep(0.5)
                stack.watch()
    except KeyboardInterrupt:
        _line("stopped; the next `kernelscope up` has its jobs and pictures again")


def _line(text: str) -> None:
    say(text, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("demo"),
    weights_dir: WeightsDir = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Explain kernels on two pictures, through the HTTP API of a server; write the figures.

    The server is that of `explain`. Exit code 0: the pictures are written; 1: they are not; 130: Ctrl-C.

    Example: kernelscope demo -o /tmp/figures
    """
    demonstration.run(out, url, key, weights_dir, as_json=as_json)


@app.command()
def mcp(url: Url = None, key: Key = None) -> None:
    """Give a server's tools to language models, by the Model Context Protocol on stdin and stdout.

    For the settings of an assistant that starts such programs; needs the extra `mcp`. Exit code 0: the assistant has
    closed its end; 1: the extra is not installed.

    Example: kernelscope mcp --url http://127.0.0.1:8000
    """
    try:
        from kernelscope.agents import serve
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        complain("this needs the extra `mcp`, which is not installed here: pip install 'kernelscope[mcp]'")
        raise typer.Exit(1) from error
    serve(address(url), key)


app.command("save")(save_)
for command in (explain, activations, jobs, get, wait, delete, cancel, retry, export, doctor):
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
            complain(f"{named(one)}; `kernelscope doctor` checks the rest")
        sys.exit(1)
    except (StackError, StackFailed, demonstration.DemoError, KernelscopeError, ClientError, OSError) as error:
        complain(str(error))
        sys.exit(1)
