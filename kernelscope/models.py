"""`kernelscope models`: what a server can explain; own networks, added to its object store and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kernelscope.asking import models as listed
from kernelscope.serving import AsJson, DataDir, local_settings
from kernelscope.terminal import document


class _Listing(TyperGroup):
    """Arguments that name no command are those of `list`: `kernelscope models vgg16`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` before them."""
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        found: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return found


models = typer.Typer(cls=_Listing, help="List networks; add and remove your own.")
models.command("list")(listed)


@models.command()
def add(  # noqa: PLR0913, PLR0917 - its options
    name: Annotated[str, typer.Argument(help="Name for use in jobs: lower-case letters, digits, '.', '_' and '-'.")],
    arch: Annotated[str, typer.Option(help="Architecture, by torchvision's name: vgg16.")],
    weights: Annotated[Path, typer.Option(help="File with its state dict: .safetensors, .pth or .pt.", exists=True)],
    mean: Annotated[str | None, typer.Option(help="Mean of its input: 0.5,0.5,0.5; default: the file's.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise.")] = None,
    pixels: Annotated[
        Literal["0-1", "0-255"], typer.Option("--range", help="Range of pixel values before mean and std.")
    ] = "0-1",
    order: Annotated[Literal["rgb", "bgr"], typer.Option(help="Order of channels, mean and std.")] = "rgb",
    channels: Annotated[int, typer.Option(min=1, max=3, help="Channels of its input: 3, or 1 for grey.")] = 3,
    size: Annotated[
        str | None, typer.Option(help="Side of its input in pixels, or HEIGHTxWIDTH; default: the architecture's.")
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"],
        typer.Option(help="How an image gets the input's shape; crop takes its centre."),
    ] = "squash",
    title: Annotated[str, typer.Option(help="Title to display.")] = "",
    data_dir: DataDir = None,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the network that has this name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a network of yours to the object store, where every worker finds it within seconds.

    Needs the rights of an operator: the settings of the object store, and torch. Exit code 0: it is added; 1: it is
    not, and the reason is printed; 2: an option is wrong.

    Example: kernelscope models add birds --arch vgg_mini --weights birds.safetensors --title "Birds, 2025"
    """
    given = {"mean": mean, "std": std, "range": pixels, "order": order}
    given |= {"channels": str(channels), "size": size, "resize": resize, "title": title}
    options = [f"--{option}={value}" for option, value in given.items() if value]
    flags = ["--replace"] if replace else []
    _run(data_dir, "add", name, f"--arch={arch}", f"--weights={weights}", *options, *flags, as_json=as_json)


@models.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the network.")],
    data_dir: DataDir = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Remove a network from the object store; its explanations are kept.

    Exit code 0: it is removed; 1: there was none.

    Example: kernelscope models remove birds
    """
    _run(data_dir, "remove", name, as_json=as_json)


def _run(data_dir: Path | None, command: str, name: str, *arguments: str, as_json: bool) -> None:
    """Run `worker.networks.register` in a process of its own, since it imports torch."""
    settings = local_settings(data_dir=data_dir)
    own = {"KERNELSCOPE_STORE_URL": settings.store, "KERNELSCOPE_WEIGHTS_DIR": str(settings.weights.absolute())}
    program = [sys.executable, "-m", "worker.networks.register", command, name, *arguments]
    output = subprocess.PIPE if as_json else None
    ran = subprocess.run(program, env={**os.environ, **own}, check=False, stdout=output, text=True)  # noqa: S603 - ours
    if ran.returncode:
        raise typer.Exit(ran.returncode)
    if as_json:
        document({"network": name, "done": command, "message": ran.stdout.strip()})
