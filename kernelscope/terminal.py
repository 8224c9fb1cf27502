"""Output of all commands: results to stdout, everything else to stderr; pictures where the terminal can show them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shared.schemas import ItemResult, JobSummary

NUMBERS = ("kernel", "SSIM", "others", "invented", "grey", "loss", "start", "blank", "s")
ANY_WIDTH = 1000
LESS_IMPORTANT = ((), ("start", "blank"), ("start", "blank", "s"), ("start", "blank", "s", "grey"))
MEANING = (
    "Of the 8-bit picture, fed back through the network. SSIM: how well the kernel's map is kept. others: fraction of "
    "the other kernels' activation that is left. invented: activation below the layer that X̂ causes and the image does "
    "not, over the image's."
)
FURTHER = {  # sentences on columns that a narrow terminal has no room for
    "grey": "grey: pixels at the mean colour.",
    "start": "start, blank: the loss of the original and of an empty picture.",
}

# What is printed are names, paths and messages of others: never markup ([bold]), never emoji codes (:cat:).
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str, where: Console = err) -> None:
    """A line for the user, not broken at the terminal's width."""
    where.print(text, soft_wrap=True)


def complain(text: str) -> None:
    """An error, on stderr."""
    err.print(Text("kernelscope: ", style="red").append(text, style="default"), soft_wrap=True)


def document(content: Any) -> None:
    """The one JSON document that a command prints with --json."""
    typer.echo(json.dumps(content, indent=1, ensure_ascii=False))


def plain(*models: BaseModel) -> list[Any]:
    """Pydantic models as JSON values."""
    return [json.loads(one.model_dump_json()) for one in models]


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table.

    Args:
        right: the columns of numbers.
    """
    made = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", no_wrap=name in right)
    return made


@contextmanager
def progress(console: Console = err) -> Iterator[Progress]:
    """A progress bar; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield bar


def state(job: JobSummary) -> str:
    """The state of a job in a few words."""
    waits = f", waits for {job.waiting_for}" if job.waiting_for else ""
    if job.status == "queued":
        place = f", place {job.queue_position}" if job.queue_position else ""
        return f"queued{place}{_about(', ', job.queue_seconds)}{waits}"
    at = job.progress
    total = "?" if at.total is None else at.total
    loss = f", loss {at.loss:.3f}" if at.loss is not None else ""
    return f"{job.status}: {at.completed} of {total}{loss}{_about(', ', at.seconds_left, ' left')}{waits}"


def _about(before: str, seconds: float | None, after: str = "") -> str:
    """A time to two digits at most; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{before}about {max(1, round(seconds))} s{after}"
    minutes = seconds / 60
    return f"{before}about {f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.0f} h'}{after}"


def numbers(result: ItemResult) -> Iterator[str]:
    """The cells of an explanation's `NUMBERS`."""
    metrics, losses = result.metrics, result.losses
    assert metrics
    assert losses
    yield str(result.kernel)
    yield "–" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    yield f"{metrics.leakage:.0%}"
    yield "–" if metrics.invention is None else f"{metrics.invention:.0%}"
    yield f"{metrics.sparsity:.0%}"
    yield from (f"{loss:.3f}" for loss in (losses.total, result.loss_start, result.loss_blank))
    yield f"{result.seconds:.1f}"


def numbers_table(title: str, before: Mapping[str, Sequence[str]], results: Sequence[ItemResult]) -> Table:
    """The numbers of explanations, with as many columns as the terminal has room for.

    Args:
        before: further columns, to the left of the numbers.
    """
    rows = [list(numbers(result)) for result in results]
    for left_out in LESS_IMPORTANT:
        shown = [index for index, name in enumerate(NUMBERS) if name not in left_out]
        names = [NUMBERS[index] for index in shown]
        made = table(title, *before, *names, right=names)
        for number, row in enumerate(rows):
            made.add_row(*(cells[number] for cells in before.values()), *(row[index] for index in shown))
        made.caption = " ".join([MEANING, *(words for name, words in FURTHER.items() if name in names)])
        if Measurement.get(out, out.options.update(max_width=ANY_WIDTH), made).maximum <= out.width:
            break
    return made


def pictured(paths: Sequence[Path], *, always: bool) -> None:
    """The pictures themselves, in a terminal that can show them.

    Args:
        always: with half blocks where it cannot.
    """
    if not (sys.stdout.isatty() or always):
        return
    from textual_image.renderable import HalfcellImage, Image, SixelImage, TGPImage

    kind = Image if Image in (SixelImage, TGPImage) else HalfcellImage
    if kind is HalfcellImage and not always:
        return
    for path in paths:
        out.print(path.name)
        out.print(kind(path, width=min(100, out.width)))
