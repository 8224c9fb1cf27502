"""`kernelscope models`: what a server can explain; networks of one's own, put into its object store and taken out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kernelscope.asking import models as listed
from shared.settings import Settings

DataDir = Annotated[
    Path | None, typer.Option(help="That of `kernelscope up`, where its object store is the one that is meant.")
]


class _Listing(TyperGroup):
    """What names no command is what `list` takes: `kernelscope models vgg16`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With `list` before them."""
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        found: list[str] = super().parse_args(ctx, args if named else ["list", *args])
        return found


models = typer.Typer(cls=_Listing, help="List networks; add and remove your own.")
models.command("list")(listed)


@models.command()
def add(  # noqa: PLR0913, PLR0917 - its options
    name: Annotated[str, typer.Argument(help="That jobs ask for: lower-case letters, digits, '.', '_' and '-'.")],
    arch: Annotated[str, typer.Option(help="What it is, by torchvision's name: vgg16.")],
    weights: Annotated[Path, typer.Option(help="Its state dict: .safetensors, .pth or .pt.", exists=True)],
    mean: Annotated[str | None, typer.Option(help="It was trained with: 0.5,0.5,0.5. Else what the file says.")] = None,
    std: Annotated[str | None, typer.Option(help="The same.")] = None,
    pixels: Annotated[
        Literal["0-1", "0-255"], typer.Option("--range", help="Of a pixel's value before mean and std.")
    ] = "0-1",
    order: Annotated[Literal["rgb", "bgr"], typer.Option(help="Of its channels, and of mean and std.")] = "rgb",
    channels: Annotated[int, typer.Option(min=1, max=3, help="Of its input: 3, or 1 where it sees grey.")] = 3,
    size: Annotated[
        str | None, typer.Option(help="Pixels a side of its input, or HEIGHTxWIDTH. Else the architecture's own.")
    ] = None,
    resize: Annotated[
        Literal["squash", "crop"], typer.Option(help="How an image takes the input's shape: its middle, by crop.")
    ] = "squash",
    title: Annotated[str, typer.Option(help="For people.")] = "",
    data_dir: DataDir = None,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the network that has this name.")] = False,
) -> None:
    """Put a network of yours into the object store, where every worker finds it within seconds.

    Needs the rights of an operator: the settings of the object store, and torch.

    Example: kernelscope models add birds --arch vgg_mini --weights birds.safetensors --title "Birds, 2025"
    """
    given = {"mean": mean, "std": std, "range": pixels, "order": order}
    given |= {"channels": str(channels), "size": size, "resize": resize, "title": title}
    options = [f"--{option}={value}" for option, value in given.items() if value]
    _run(data_dir, "add", name, f"--arch={arch}", f"--weights={weights}", *options, *_flags(replace=replace))


@models.command()
def remove(
    name: Annotated[str, typer.Argument(help="As it was added.")],
    data_dir: DataDir = None,
) -> None:
    """Take a network out of the object store again; what was explained with it stays.

    Example: kernelscope models remove birds
    """
    _run(data_dir, "remove", name)


def _flags(**flags: bool) -> Iterator[str]:
    yield from (f"--{name}" for name, on in flags.items() if on)


def _run(data_dir: Path | None, *arguments: str) -> None:
    """In a process with torch, which alone can look into weights."""
    settings = Settings(data_dir=data_dir) if data_dir else Settings()
    own = {"KERNELSCOPE_STORE_URL": settings.store, "KERNELSCOPE_WEIGHTS_DIR": str(settings.weights.absolute())}
    command = [sys.executable, "-m", "worker.networks.register", *arguments]
    ran = subprocess.run(command, env={**os.environ, **own}, check=False)  # noqa: S603 - ours
    if ran.returncode:
        raise typer.Exit(ran.returncode)
