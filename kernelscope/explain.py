"""`kernelscope explain` and `kernelscope activations`: from pictures to pictures, tables and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from kernelscope.client import Job, Result
from kernelscope.client.files import folder_name
from kernelscope.serving import AsJson, Key, Url, WeightsDir, server, usable
from kernelscope.terminal import MEANING, NUMBERS, err, numbers, out, progress, show, state, table
from shared import catalogue
from shared.schemas import ActiveKernel

PICTURES = ("panel.png", "optimized.png", "contrast.png")
BAR_WIDTH = 24

Images = Annotated[
    list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, help="PNG, JPEG or WebP, up to 16.")
]


class Way(StrEnum):
    """The methods, as the command line offers them."""

    EVIDENCE = "evidence"
    SUPPRESSION = "suppression"
    GUIDED_BACKPROP = "guided_backprop"
    DECONVNET = "deconvnet"
    LRP = "lrp"


def _networks(incomplete: str) -> list[str]:
    return [name for name in catalogue.networks() if name.startswith(incomplete)]


def _layers(context: typer.Context, incomplete: str) -> list[str]:
    named = context.params.get("model") or "vgg16"
    network = catalogue.networks().get(named)
    return [layer.name for layer in network.layers if layer.name.startswith(incomplete)] if network else []


Layer = Annotated[str, typer.Option("--layer", "-l", help="As conv3_3.", autocompletion=_layers)]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="vgg16 unless named, or vgg_mini where that has no weights.", autocompletion=_networks
    ),
]


def explain(
    images: Images,
    layer: Layer,
    kernel: Annotated[list[int] | None, typer.Option("--kernel", "-k", min=0, help="One; may be repeated.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="The N most active kernels; 3 unless others are named.")
    ] = None,
    model: Model = None,
    method: Annotated[list[Way] | None, typer.Option(help="May be repeated; suppression unless given.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(min=0, help="α; may be repeated: one X̂ for each.")] = None,
    beta: Annotated[list[float] | None, typer.Option(min=0, help="β; may be repeated: one X̂ for each.")] = None,
    effort: Annotated[
        Literal["quick", "standard", "thorough"], typer.Option(help="How long the fast solver tries.")
    ] = "standard",
    solver: Annotated[Literal["fast", "reference"], typer.Option(help="reference is the paper's, and slow.")] = "fast",
    iterations: Annotated[int | None, typer.Option(min=1, help="Gradient evaluations instead of the effort.")] = None,
    target_ssim: Annotated[float | None, typer.Option(help="Keep the kernel's map with this SSIM at least.")] = None,
    only_remove: Annotated[bool, typer.Option(help="Only take away from the image, as evidence always does.")] = False,
    gamma: Annotated[float | None, typer.Option(min=0, help="Of evidence: its term's weight.")] = None,
    max_invention: Annotated[float | None, typer.Option(help="Of evidence: a bound of its term instead.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", file_okay=False, help="Folder for the pictures; a new one unless given."),
    ] = None,
    url: Url = None,
    key: Key = None,
    weights_dir: WeightsDir = None,
    pictures: Annotated[bool, typer.Option("--show", help="Show the figures in any terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain kernels on pictures: a table of numbers, and the pictures in a folder.

    With --url a server does it, else a private stack that is started for it and stopped afterwards. Exit code 0: there
    is an explanation at least; 1: there is none; 2: an option is wrong; 130: Ctrl-C.

    Example: kernelscope explain photo.jpg --layer conv2_2 --top 3

    Example: kernelscope explain photo.jpg -l conv2_2 -k 3 -k 16 --method evidence --method suppression -o explained

    Example: kernelscope explain photo.jpg -l conv1_2 --top 1 --beta 0.5 --beta 2 --effort quick --json
    """
    if kernel and top:
        raise typer.BadParameter("name kernels or ask for the most active, not both", param_hint="--top")
    options: dict[str, Any] = {
        "methods": list(map(str, method or [Way.SUPPRESSION])),
        "alpha": alpha or [1.0],
        "beta": beta or [1.0],
        "effort": effort,
        "solver": solver,
        "iterations": iterations,
        "target_ssim": target_ssim,
        "only_remove": only_remove or None,
        "gamma": gamma,
        "max_invention": max_invention,
    }
    with server(url, key, weights_dir, model) as client:
        named = usable(client, model)
        job = client.explain(images, layer=layer, kernels=kernel or f"top:{top or 3}", model=named, **options)
        _follow(job)
        files = _saved(job, images, output)
        _told(job, images, files, as_json=as_json)
        if not as_json:
            show([file for file in files if file.name.endswith("panel.png")], always=pictures)
    if not any(result.status == "succeeded" for result in job.results):
        raise typer.Exit(1)


def _follow(job: Job) -> None:
    """A bar until the job has ended; Ctrl-C ends it on the server too."""
    try:
        with progress() as bar:
            task = bar.add_task(state(job), total=1.0)

            def moved(seen: Job) -> None:
                bar.update(task, description=state(seen), completed=seen.progress.fraction)

            job.wait(on_change=moved)
            bar.update(task, description=state(job), completed=1.0)
    except KeyboardInterrupt:
        err.print("interrupted: the job is cancelled")
        if not job.refresh().status.terminal:
            job.cancel()
        raise


def _saved(job: Job, images: Sequence[Path], output: Path | None) -> list[Path]:
    """The pictures of every explanation, under names that say image, layer, kernel and method."""
    done = [result for result in job.results if result.status == "succeeded"]
    if not done:
        return []
    folder = output or _fresh(f"{images[0].stem}-{job.request.layer}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    drawn: set[tuple[int, int | None]] = set()  # the images and kernels whose panel, with all methods, is there
    for result in done:
        shown = job.request.image_of(result.index), result.kernel
        names = [name for name in PICTURES if name != "panel.png" or shown not in drawn]
        drawn.add(shown)
        for name in names:
            file = folder / f"{_image(job, result, images).stem}-{folder_name(job, result)}-{name}"
            file.write_bytes(result.file(name))
            written.append(file)
    (folder / "job.json").write_text(job.model_dump_json(indent=1))
    return written


def _fresh(name: str) -> Path:
    """A folder that is not there yet."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10_000))
    return next(path for path in map(Path, names) if not path.exists())


def _image(job: Job, result: Result, images: Sequence[Path]) -> Path:
    return images[job.request.image_of(result.index)]


def _told(job: Job, images: Sequence[Path], files: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        told = {"job": json.loads(job.model_dump_json()), "files": [str(file) for file in files]}
        typer.echo(json.dumps(told, indent=1))
        return
    out.print(_table(job, images))
    for result in job.results:
        if result.error:
            out.print(f"kernel {result.kernel}: {result.error.title}: {result.error.detail}")
        if result.note:
            out.print(f"kernel {result.kernel} by {result.method}: {result.note}")
    for used in dict.fromkeys(result.weights for result in job.results if result.weights):
        fed = used.preprocessing or "nobody knows how"
        out.print(f"{job.request.model}: {escape(used.source)}, fed {fed}", soft_wrap=True)
    if job.error:
        err.print(f"[red]kernelscope:[/red] {job.error.title}: {job.error.detail}")
    if files:
        out.print(f"{len(files)} pictures in [bold]{files[0].parent}/[/bold]; *-panel.png is a figure of all of it:")
        for file in files:
            if file.name.endswith("panel.png"):
                out.print(f"  {file}", soft_wrap=True)


def _table(job: Job, images: Sequence[Path]) -> Table:
    several = [
        name
        for name, many in {
            "image": len(images) > 1,
            "method": len(job.request.methods) > 1,
            "α": len(job.request.alpha) > 1,
            "β": len(job.request.beta) > 1,
        }.items()
        if many
    ]
    made = table(f"{job.request.layer} of {job.request.model}", *several, *NUMBERS, right=NUMBERS)
    for result in job.results:
        if result.status == "succeeded":
            axes = {
                "image": _image(job, result, images).name,
                "method": result.method,
                "α": f"{result.alpha:g}",
                "β": f"{result.beta:g}",
            }
            made.add_row(*(axes[name] for name in several), *numbers(result))
    made.caption = MEANING
    return made


def activations(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="PNG, JPEG or WebP.")],
    layer: Layer,
    top: Annotated[int, typer.Option(min=1, help="How many kernels to list.")] = 20,
    model: Model = None,
    url: Url = None,
    key: Key = None,
    weights_dir: WeightsDir = None,
    as_json: AsJson = False,
) -> None:
    """Rank a layer's kernels by how active they are on a picture. As `explain`, with a server or by itself.

    Example: kernelscope activations photo.jpg --layer conv2_2 --top 10
    """
    with server(url, key, weights_dir, model) as client:
        job = client.activations(image, layer=layer, model=usable(client, model))
        _follow(job)
        job.check()
    ranking = (job.results[0].ranking or [])[:top]
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in ranking], indent=1))
        return
    out.print(_ranking(job, ranking))


def _ranking(job: Job, ranking: Sequence[ActiveKernel]) -> Table:
    columns = ("kernel", "mean", "max", "active")
    made = table(f"{job.request.layer} of {job.request.model}: the most active kernels", *columns, "", right=columns)
    most = max((one.mean for one in ranking), default=0.0) or 1.0
    for one in ranking:
        bar = "█" * round(BAR_WIDTH * one.mean / most)
        made.add_row(str(one.kernel), f"{one.mean:.3g}", f"{one.max:.3g}", f"{one.active:.0%}", bar)
    return made
