"""Results of jobs as tables, sentences and files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.table import Table

from kernelscope.client import Job
from kernelscope.client.files import folder_name, written
from kernelscope.terminal import complain, numbers_table, out, say, table
from shared import schemas
from shared.errors import ModelUnavailable
from shared.schemas import ActiveKernel

PICTURES = ("panel.png", "optimized.png", "contrast.png")
BAR_WIDTH = 24
LONGEST_LABEL = 100
MOST_NOTES = 5
MOST_NAMED = 3  # of the explanations that failed for the same reason


@dataclass(frozen=True)
class Explained:
    """An explanation, or why there is none, beside what names its image."""

    label: str
    request: schemas.ExplainRequest
    result: schemas.ItemResult


def labels_of(names: Sequence[str | None]) -> list[str]:
    """Different names, fit for files, that begin as those of the images do."""
    labels: list[str] = []
    for number, name in enumerate(names):
        plain = PurePosixPath((name or f"image{number}").replace("\\", "/"))
        whole = "-".join((*plain.parts[:-1], plain.stem))
        label = re.sub(r"[^\w.() +@=,\[\]-]", "-", whole).strip(". -")[:LONGEST_LABEL] or f"image{number}"
        same = (label if count == 1 else f"{label}-{count}" for count in range(1, len(names) + 2))
        labels.append(next(one for one in same if one not in labels))
    return labels


def labels_in(request: schemas.ExplainRequest) -> list[str]:
    """Labels of the images of a job, from the names in its request."""
    return labels_of([request.name_of(number) for number in range(len(request.images))])


def explained(job: Job | schemas.WholeJob, labels: Sequence[str]) -> list[Explained]:
    """Every result that a job has, with the names of its images."""
    return [Explained(labels[job.request.image_of(one.index)], job.request, one) for one in job.results]


def save(job: Job, labels: Sequence[str], folder: Path, *, everything: bool = False) -> Iterator[Path]:
    """Write the pictures of every explanation, under names that say image, layer, kernel and method.

    Args:
        everything: every file that there is of it, arrays and curves as well.
    """
    drawn: set[tuple[int, int | None]] = set()  # the images and kernels whose panel, with all methods, is written
    for result in job.results:
        if result.status != "succeeded":
            continue
        image = job.request.image_of(result.index)
        first = (image, result.kernel) not in drawn
        drawn.add((image, result.kernel))
        for name in result.artifacts if everything else PICTURES:
            if name in result.artifacts and (first or name != "panel.png"):
                file = folder / file_name(job, result, labels[image], name)
                with written(file) as target:
                    target.write(result.file(name))
                result._files.clear()  # noqa: SLF001 - of thousands of results, the pictures would fill the memory
                yield file


def saved_before(
    job: schemas.WholeJob, results: Sequence[schemas.ItemResult], label: str, folder: Path
) -> list[Path] | None:
    """The pictures of one image that a folder has from an earlier run; None if some are missing."""
    files = dict.fromkeys(
        folder / file_name(job, result, label, name)
        for result in results
        for name in PICTURES
        if name in result.artifacts
    )
    return list(files) if all(file.exists() for file in files) else None


def file_name(job: schemas.JobSummary, result: schemas.ItemResult, label: str, name: str) -> str:
    """`photo-conv2_2-kernel3-panel.png`: a panel shows all methods, so none is in its name."""
    if name == "panel.png":
        return f"{label}-{job.request.layer}-kernel{result.kernel}-{name}"
    of_image = f"image{job.request.image_of(result.index)}-"
    return f"{label}-{folder_name(job, result).removeprefix(of_image)}-{name}"


def fresh(name: str) -> Path:
    """A folder that does not exist yet."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10_000))
    return next(path for path in map(Path, names) if not path.exists())


def show(found: Sequence[Explained]) -> None:
    """The table of numbers, and below it why others failed, some of the notes and the weights."""
    if any(one.result.status == "succeeded" for one in found):
        out.print(_table(found))
    several = len({one.label for one in found}) > 1
    noted = 0
    failed: dict[str, list[str]] = {}  # who, by the reason
    for one in found:
        result = one.result
        kernel = f"kernel {result.kernel}" if result.kernel is not None else f"number {(result.rank or 0) + 1}"
        who = f"{one.label}, {kernel}" if several else kernel
        if result.error:
            failed.setdefault(f"{result.error.title}: {result.error.detail}", []).append(who)
        if result.note:
            noted += 1
            if noted <= MOST_NOTES:
                say(f"{who} by {result.method}: {result.note}", out)
    for why, named in failed.items():
        others = f" and {len(named) - MOST_NAMED} others" if len(named) > MOST_NAMED else ""
        say(f"{'; '.join(named[:MOST_NAMED])}{others}: {why}", out)
    if noted > MOST_NOTES:
        say(f"{noted - MOST_NOTES} other explanations have notes too: `note` in their records, or --json", out)
    used = {one.result.weights.source: one for one in found if one.result.weights}
    for one in used.values():
        assert one.result.weights
        fed = one.result.weights.preprocessing or "in an unknown way"
        say(f"{one.request.model}: {one.result.weights.source}, input normalised: {fed}", out)


def show_errors(jobs: Sequence[Job | schemas.WholeJob]) -> None:
    """Why jobs as a whole failed, on stderr; and what helps where a network has no weights."""
    for job in jobs:
        if job.error:
            complain(f"{job.error.title}: {job.error.detail}")
    problems = [*(job.error for job in jobs), *(one.error for job in jobs if job.failed_items for one in job.results)]
    if any(problem and problem.type.endswith(ModelUnavailable.type_uri()) for problem in problems):
        say("`--model vgg_mini` takes a small network that comes with Kernelscope; `kernelscope models` lists others")


def _table(found: Sequence[Explained]) -> Table:
    axes = {
        "image": [one.label for one in found],
        "method": [one.result.method for one in found],
        "α": [f"{one.result.alpha:g}" for one in found],
        "β": [f"{one.result.beta:g}" for one in found],
    }
    several = [name for name, values in axes.items() if len(set(values)) > 1]
    first = found[0].request if found else None
    done = [number for number, one in enumerate(found) if one.result.status == "succeeded"]
    before = {name: [axes[name][number] for number in done] for name in several}
    title = f"{first.layer} of {first.model}" if first else ""
    return numbers_table(title, before, [found[number].result for number in done])


def ranking(request: schemas.ExplainRequest, ranked: Sequence[ActiveKernel]) -> Table:
    """The most active kernels, with bars."""
    columns = ("kernel", "mean", "max", "active")
    made = table(f"{request.layer} of {request.model}: the most active kernels", *columns, "", right=columns)
    most = max((one.mean for one in ranked), default=0.0) or 1.0
    for one in ranked:
        bar = "█" * round(BAR_WIDTH * one.mean / most)
        made.add_row(str(one.kernel), f"{one.mean:.3g}", f"{one.max:.3g}", f"{one.active:.0%}", bar)
    return made
