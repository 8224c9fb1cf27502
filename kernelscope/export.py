"""`kernelscope export`: a layer's kernels as a folder of pages that opens in a browser without a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kernelscope.client import Client, ClientError, NotFound
from kernelscope.client.files import written
from kernelscope.datasets import PATIENCE
from kernelscope.pages import Site, images_of
from kernelscope.serving import AsJson, Key, Url, remote
from kernelscope.surveys import OfSurvey
from kernelscope.terminal import document, err, out, say
from shared.schemas import MOST_KERNELS, LayerKernels

T = TypeVar("T")
U = TypeVar("U")

CONNECTIONS = 8
MARK = "export.json"
BESIDE = ("style.css", "order.js")
OURS = re.compile(r"kernel-\d+\.html|[0-9a-f]{16}\.webp")


class NoExport(ClientError):
    """The export cannot be written; the message says why."""


class Mark(BaseModel):
    """What a folder is an export of."""

    network: str
    layer: str
    survey: str


def export(  # noqa: PLR0913 - the options of a command
    network: Annotated[str, typer.Argument(help="Network, such as vgg16.")],
    layer: Annotated[str, typer.Argument(help="Layer, such as conv3_3.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="A new folder, or that of an unfinished export.")
    ],
    *,
    survey: OfSurvey = None,
    kernels: Annotated[
        str | None, typer.Option(help="Such as 1,2, or top:N for the N most active; default: all.")
    ] = None,
    url: Url = None,
    key: Key = None,
    explain: Annotated[bool, typer.Option("--explain", help="First make X̂ of their top images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write pages about the kernels of a layer, which can be opened without a server.

    The same command continues after Ctrl-C, and adds X̂ that were made since. Exit code 0: the pages are written;
    1: there is no such layer or survey, the folder is something else's, or no server; 2: an option is wrong;
    130: Ctrl-C.

    Example: kernelscope export vgg_mini conv2_2 -o conv2_2 --kernels top:8
    """
    there = _mark(output)
    with remote(url, key, PATIENCE) as client:
        known = client.layer_kernels(network, layer, survey or (there.survey if there else None))
        mark = Mark(network=known.survey.model, layer=known.layer.name, survey=known.survey.id)
        if there and there != mark:
            raise NoExport(f"{output} is an export of {_called(there)}, not of {_called(mark)}; choose another folder")
        if not known.survey.status.terminal:
            raise NoExport(
                f"survey {mark.survey} is {known.survey.status} ({known.survey.surveyed:,} of {known.survey.images:,} "
                f"images); `kernelscope surveys follow {mark.survey}` waits for it"
            )
        wanted = chosen(known, kernels)
        (output / "images").mkdir(parents=True, exist_ok=True)
        (output / MARK).write_text(mark.model_dump_json())
        try:
            gone = _written(client, known, wanted, output, explain=explain)
        except KeyboardInterrupt:
            say("interrupted; the same command continues the export")
            raise
    if gone:
        say(f"images that the server no longer has: {gone}; was the data set deleted?")
    if as_json:
        document({"index": str(output / "index.html"), "kernels": len(wanted), "missing_images": gone})
    else:
        say(f"{len(wanted)} kernels: {output / 'index.html'}", out)


def chosen(known: LayerKernels, asked: str | None) -> list[int]:
    """The kernels that an option names, in their order.

    Raises:
        typer.BadParameter: the layer has no such kernels.
    """
    every = [one.kernel for one in known.kernels]
    if asked is None:
        return every
    if match := re.fullmatch(r"top:([1-9][0-9]{0,4})", asked.strip()):
        ranked = sorted(known.kernels, key=lambda one: (-one.mean, one.kernel))
        return sorted(one.kernel for one in ranked[: int(match[1])])
    if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", asked):
        raise typer.BadParameter(f"{asked!r} names no kernels; give 1,2 or top:8", param_hint="--kernels")
    found = sorted(set(map(int, asked.split(","))))
    if unknown := sorted(set(found) - set(every)):
        raise typer.BadParameter(
            f"kernel {unknown[0]} does not exist in {known.layer.name}; its {len(every)} kernels are 0 to {every[-1]}",
            param_hint="--kernels",
        )
    return found


def _mark(folder: Path) -> Mark | None:
    """The mark of the export in a folder, if there is one.

    Raises:
        NoExport: the folder has something else in it.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return Mark.model_validate_json((folder / MARK).read_text())
    except (OSError, ValidationError) as error:
        raise NoExport(f"{folder} is not empty and is not an export; choose another folder") from error


def _called(mark: Mark) -> str:
    return f"{mark.layer} of {mark.network} by survey {mark.survey}"


def _written(client: Client, known: LayerKernels, wanted: Sequence[int], folder: Path, *, explain: bool) -> int:
    """Write everything, the index last. Returns how many images the server no longer has."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        if explain:
            _explain(client, known, wanted, bar)
        model, layer, survey = known.survey.model, known.layer.name, known.survey.id
        pages = list(_each(lambda kernel: client.kernel(model, layer, kernel, survey), wanted, bar, "kernels"))
        images = {file: link for page in pages for file, link in images_of(page)}
        fetched = _each(lambda one: _fetched(client, folder / one[0], one[1]), images.items(), bar, "images")
        there = {file for file, had in zip(images, fetched, strict=True) if had}
        table = client.survey_csv(survey)
    site = dict(Site(known, pages, there).files())
    for name, content in ({"survey.csv": table} | _beside() | site).items():
        with written(folder / name) as file:
            file.write(content.encode())
    for path in (*folder.glob("*.html"), *(folder / "images").iterdir()):
        if OURS.fullmatch(path.name) and path.relative_to(folder).as_posix() not in {*site, *there}:
            path.unlink()  # of an earlier export of other kernels
    return len(images) - len(there)


def _beside() -> dict[str, str]:
    """The content of the files that all pages use, by name."""
    return {name: files("kernelscope").joinpath("site", name).read_text(encoding="utf-8") for name in BESIDE}


def _explain(client: Client, known: LayerKernels, wanted: Sequence[int], bar: Progress) -> None:
    """Request X̂ of the top images of each kernel that has any, with as many kernels in a request as it may have."""
    active = [one.kernel for one in known.kernels if one.kernel in set(wanted) and one.crop]
    task = bar.add_task("explained", total=len(active))
    for start in range(0, len(active), MOST_KERNELS):
        jobs = client.explain_kernels(known.survey.id, known.layer.name, active[start : start + MOST_KERNELS])
        for job in jobs:
            job.wait()
            bar.advance(task)


def _each(do: Callable[[T], U], things: Iterable[T], bar: Progress, called: str) -> Iterator[U]:
    """The result for each, in their order, several at once; an error or Ctrl-C leaves the rest."""
    listed = list(things)
    task = bar.add_task(called, total=len(listed))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            for found in pool.map(do, listed):
                bar.advance(task)
                yield found
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetched(client: Client, path: Path, link: str) -> bool:
    """Download an image, unless it was downloaded before. Returns whether there is one."""
    if path.exists():
        return True
    try:
        data = client.file(link)
    except NotFound:
        return False
    with written(path) as file:
        file.write(data)
    return True
