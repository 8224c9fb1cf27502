"""`kernelscope explain` and `kernelscope activations`: from images to pictures, tables and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import ValidationError

from kernelscope.client import Job
from kernelscope.manifest import Folder
from kernelscope.many import Run
from kernelscope.photos import Photo, found
from kernelscope.results import fresh, ranking, show, show_errors
from kernelscope.serving import AsJson, Key, Model, Url, WeightsDir, server, usable
from kernelscope.submitting import Submission, cancel
from kernelscope.terminal import document, out, pictured, plain, progress, say, state
from shared import catalogue
from shared.schemas import ExplainOptions, Method

MOST_PANELS = 8  # that are named after a run; the folder has the others


def _layers(context: typer.Context, incomplete: str) -> list[str]:
    named = context.params.get("model") or "vgg16"
    network = catalogue.networks().get(named)
    return [layer.name for layer in network.layers if layer.name.startswith(incomplete)] if network else []


def _methods(incomplete: str) -> list[str]:
    return [name for name in get_args(Method) if name.startswith(incomplete)]


Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGE…", help="PNG, JPEG and WebP files, folders of them, or patterns.")
]
Layer = Annotated[str, typer.Option("--layer", "-l", help="Layer, such as conv3_3.", autocompletion=_layers)]


def explain(
    images: Images,
    layer: Layer,
    kernels: Annotated[
        list[str] | None,
        typer.Option("--kernel", "-k", "--kernels", help="Kernels: 3 or 3,16 or top:4; may be repeated."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="The N most active kernels; default: 3, unless --kernels is given.")
    ] = None,
    model: Model = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            help="suppression (the default; Zhuang et al.'s method exactly), evidence (the same with one more term), "
            "guided_backprop, deconvnet, lrp; may be repeated.",
            autocompletion=_methods,
        ),
    ] = None,
    rule: Annotated[Literal["zplus", "gamma_epsilon"] | None, typer.Option(help="Rule of lrp.")] = None,
    scaling: Annotated[
        Literal["max", "minmax"] | None, typer.Option(help="Scaling of guided_backprop, deconvnet and lrp.")
    ] = None,
    alpha: Annotated[list[float] | None, typer.Option(min=0, help="α; may be repeated, for one X̂ each.")] = None,
    beta: Annotated[list[float] | None, typer.Option(min=0, help="β; may be repeated, for one X̂ each.")] = None,
    effort: Annotated[
        Literal["quick", "standard", "thorough"], typer.Option(help="How long the fast solver tries.")
    ] = "standard",
    solver: Annotated[
        Literal["fast", "reference"], typer.Option(help="reference is the paper's slow procedure.")
    ] = "fast",
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Number of gradient evaluations, instead of --effort.")
    ] = None,
    target_ssim: Annotated[float | None, typer.Option(help="Keep the kernel's map with at least this SSIM.")] = None,
    max_preservation: Annotated[float | None, typer.Option(help="Likewise, an upper bound on the loss L_p.")] = None,
    only_remove: Annotated[bool, typer.Option(help="Only remove from the image, as evidence always does.")] = False,
    gamma: Annotated[float | None, typer.Option(min=0, help="Weight of evidence's additional term.")] = None,
    max_invention: Annotated[float | None, typer.Option(help="Upper bound on that term, instead of a weight.")] = None,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds after which running X̂ are delivered as they are, and the rest fails.")
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="URL that the server calls when a job has ended.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", file_okay=False, help="Folder for the pictures; default: a new one."),
    ] = None,
    url: Url = None,
    key: Key = None,
    weights_dir: WeightsDir = None,
    pictures: Annotated[bool, typer.Option("--show", help="Show the figures in the terminal.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the jobs' ids, one per line, without waiting.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain kernels on images: a table of numbers, and pictures in a folder.

    The server is that of --url or KERNELSCOPE_URL; else the `kernelscope up` that runs on this machine; else a private
    one, started for this command and stopped afterwards (also with --weights-dir). For many images several jobs are
    created; with the same --output, the same command continues after an interruption and explains new images.

    Exit code 0: there is at least one explanation (--detach: the jobs are created); 1: there is none, or no server;
    2: an option or a file is wrong; 130: Ctrl-C, and the jobs are cancelled.

    Example: kernelscope explain photo.jpg --layer conv2_2 --top 3

    Example: kernelscope explain photo.jpg -l conv2_2 -k 3,16 --methods evidence,lrp --effort quick -o explained

    Example: kernelscope explain photo.jpg -l conv1_2 --top 1 --beta 0.5 --beta 2 --effort quick --json

    Example: kernelscope explain photos/ -l conv2_2 -k 3 --effort quick -o explained

    Example: kernelscope explain photos/*.jpg -l conv2_2 -k 3,16 --effort quick --detach
    """
    if kernels and top:
        raise typer.BadParameter("give kernels or --top, not both", param_hint="--top")
    if detach and output:
        raise typer.BadParameter("with --detach, `kernelscope save JOB -o FOLDER` saves them later", param_hint="-o")
    photos = found(images)
    asked: dict[str, Any] = {
        "layer": layer,
        "kernels": _kernels(kernels) if kernels else f"top:{top or 3}",
        "methods": _several(methods),
        "rule": rule,
        "scaling": scaling,
        "alpha": alpha,
        "beta": beta,
        "effort": effort,
        "solver": solver,
        "iterations": iterations,
        "target_ssim": target_ssim,
        "max_preservation": max_preservation,
        "only_remove": only_remove,
        "gamma": gamma,
        "max_invention": max_invention,
        "deadline_s": deadline_s,
        "webhook_url": webhook_url,
    }
    options = _checked(asked)
    with server(url, key, weights_dir, model, stays=detach) as client:
        options = options.model_copy(update={"model": usable(client, model)})
        if detach:
            _leave(Submission(client, options, several=len(photos) > 1), photos, as_json=as_json)
            return
        one = photos[0].label if len(photos) == 1 else images[0].stem or "images"
        folder = output or fresh(f"{one}-{layer}")
        unlike = {"deadline_s", "webhook_url"}  # what is no part of the explanation
        run = Run(client, options, Folder(folder, options.model_dump(mode="json", exclude=unlike)), len(photos))
        run.follow(photos)
        _report(run, folder, as_json=as_json, pictures=pictures)
    if not any(one.result.status == "succeeded" for one in run.results):
        raise typer.Exit(1)


def _kernels(given: list[str]) -> list[int] | str:
    """`3`, `3,16`, or `top:4` alone.

    Raises:
        typer.BadParameter: it is none of these.
    """
    parts = _several(given) or []
    if len(parts) == 1 and parts[0].startswith("top:"):
        return parts[0]
    if not parts or not all(part.isdecimal() and part.isascii() for part in parts):
        raise typer.BadParameter(f"{', '.join(given)!r} names no kernels; give 3 or 3,16 or top:4", param_hint="-k")
    return [int(part) for part in parts]


def _several(given: list[str] | None) -> list[str] | None:
    """Values that are repeated or separated by commas."""
    return [part.strip() for text in given for part in text.split(",") if part.strip()] if given else None


def _checked(asked: dict[str, Any]) -> ExplainOptions:
    """The request's options, as the server checks them.

    Raises:
        typer.BadParameter: what is wrong.
    """
    try:
        return ExplainOptions(**{name: value for name, value in asked.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        named = first["loc"] and str(first["loc"][0])
        hint = f"--{named.replace('_', '-')}" if named else None
        raise typer.BadParameter(first["msg"].removeprefix("Value error, "), param_hint=hint) from None


def _leave(submission: Submission, photos: list[Photo], *, as_json: bool) -> None:
    """Make the jobs, and print their ids."""
    jobs = []
    for batch in submission.batches(photos):
        jobs.append(batch.job)
        if not as_json:
            typer.echo(batch.job.id)
    if as_json:
        document({"jobs": plain(*jobs), "files": [], "refused": submission.refused})
    say("`kernelscope wait JOB…` waits for them, `kernelscope save JOB…` saves their pictures")
    if not jobs:
        raise typer.Exit(1)


def _report(run: Run, folder: Path, *, as_json: bool, pictures: bool) -> None:
    if as_json:
        only = {"job": plain(*run.jobs)[0]} if len(run.jobs) == 1 else {}
        files = [str(file) for file in run.files]
        document({**only, "jobs": plain(*run.jobs), "files": files, "refused": run.refused})
    else:
        show(run.results)
    show_errors(run.jobs)
    if as_json:
        return
    panels = [file for file in run.files if file.name.endswith("panel.png")]
    if run.files:
        say(f"{len(run.files)} pictures in {folder}/; *-panel.png is a figure of all of it:", out)
        for file in panels[:MOST_PANELS]:
            say(f"  {file}", out)
        if len(panels) > MOST_PANELS:
            say(f"  and {len(panels) - MOST_PANELS} others", out)
    pictured(panels, always=pictures)


def activations(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="PNG, JPEG or WebP.")],
    layer: Layer,
    top: Annotated[int, typer.Option(min=1, help="Number of kernels to list.")] = 20,
    model: Model = None,
    url: Url = None,
    key: Key = None,
    weights_dir: WeightsDir = None,
    as_json: AsJson = False,
) -> None:
    """Rank a layer's kernels by how active they are on an image. Uses the same server as `explain`.

    Exit code 0: they are ranked; 1: they could not be, or no server; 2: an option or the file is wrong; 130: Ctrl-C.

    Example: kernelscope activations photo.jpg --layer conv2_2 --top 10
    """
    with server(url, key, weights_dir, model) as client:
        job = client.activations(image, layer=layer, model=usable(client, model))
        _follow(job)
        show_errors([job])
        job.check()
        ranked = (job.results[0].ranking or [])[:top]
    if as_json:
        document(plain(*ranked))
        return
    out.print(ranking(job.request, ranked))


def _follow(job: Job) -> None:
    """A bar until the job has ended; Ctrl-C cancels it on the server too."""
    try:
        with progress() as bar:
            task = bar.add_task(state(job), total=1.0)
            job.wait(on_change=lambda seen: bar.update(task, description=state(seen), completed=seen.progress.fraction))
            bar.update(task, description=state(job), completed=1.0)
    except KeyboardInterrupt:
        cancel([job])
        raise
