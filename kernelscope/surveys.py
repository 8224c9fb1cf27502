"""`kernelscope surveys`: what every kernel of a network responds to in the images of a data set, on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kernelscope.client import ClientError, Job
from kernelscope.datasets import PATIENCE
from kernelscope.serving import AsJson, DataDir, Key, Model, Url, local_settings, remote, usable
from kernelscope.terminal import document, out, plain, progress, say, state, table
from shared.datasets import DataSets
from shared.schemas import DataSet, Explanation, KernelPage, Status, Survey
from shared.store import BlobStore
from shared.surveys.store import Surveys

MOST_SIMILAR = 4  # kernels that a sentence names

SurveyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a survey, see `kernelscope surveys list`.")]
OfSurvey = Annotated[
    str | None,
    typer.Option(
        "--survey",
        metavar="ID",
        help="Id of a survey; default: the newest that includes the layer.",
        show_default=False,
    ),
]


class UnknownDataSet(ClientError):
    """No data set has this name, or several have."""


surveys = typer.Typer(no_args_is_help=True, help="Find out what every kernel of a network responds to in many images.")


@surveys.command()
def make(  # noqa: PLR0913 - the options of a command
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name or id of a data set.")],
    model: Model = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", help="Such as conv3_3; several with commas or repeated; default: all."),
    ] = None,
    url: Url = None,
    key: Key = None,
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Start it without waiting for it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Survey the kernels of a network on a data set. Ctrl-C stops the waiting, not the survey.

    Exit code 0: it is finished (--detach: started); 1: it failed, or there is no such data set or server; 130: Ctrl-C.

    Example: kernelscope surveys make birds --model vgg_mini --layer conv2_1,conv2_2
    """
    layers = [name.strip() for some in layer or [] for name in some.split(",") if name.strip()]
    with remote(url, key, PATIENCE) as client:
        surveyed = named(client.datasets(), dataset).id
        job = client.survey(surveyed, model=usable(client, model), layers=layers)
        if not detach:
            _follow(job)
        _show(client.get_survey(job.id), as_json=as_json)


@surveys.command()
def follow(survey_id: SurveyId, url: Url = None, key: Key = None, *, as_json: AsJson = False) -> None:
    """Wait for a survey that was started. Ctrl-C stops the waiting, not the survey.

    Exit code 0: it is finished; 1: it failed, or there is no such survey or no server; 130: Ctrl-C.

    Example: kernelscope surveys follow 0123456789abcdef0123456789abcdef
    """
    with remote(url, key, PATIENCE) as client:
        if not client.get_survey(survey_id).status.terminal:
            _follow(client.job(survey_id))
        _show(client.get_survey(survey_id), as_json=as_json)


@surveys.command("list")
def listed(url: Url = None, key: Key = None, *, as_json: AsJson = False) -> None:
    """List your surveys, and public ones.

    Exit code 0: they are listed; 1: no server.

    Example: kernelscope surveys list
    """
    with remote(url, key) as client:
        found = client.surveys()
    if as_json:
        document(plain(*found))
    elif not found:
        out.print("no surveys; `kernelscope surveys make DATASET` starts one")
    else:
        made = table("", "survey", "data set", "network", "layers", "images", "made", "", right=("layers",))
        made.columns[0].min_width = 32  # an id is copied
        for one in found:
            images = f"{one.surveyed:,}" if one.surveyed == one.images else f"{one.surveyed:,} of {one.images:,}"
            images += "" if one.status is Status.SUCCEEDED else f", {one.status}"
            row = (one.id, one.dataset_name, one.model, str(len(one.layers)), images)
            made.add_row(*row, f"{one.created_at:%F}", "" if one.mine else "public")
        out.print(made)


@surveys.command()
def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of surveys, see `kernelscope surveys list`.")],
    url: Url = None,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Delete surveys of yours.

    Exit code 0: they are deleted; 1: there is no such survey (those before it are deleted), or no server.

    Example: kernelscope surveys delete 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        for one in ids:
            client.delete_survey(one)
            if not as_json:
                say(f"{one} is deleted", out)
    if as_json:
        document({"deleted": ids})


@surveys.command()
def csv(
    survey_id: SurveyId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="File; default: stdout.")
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write a table (CSV) of all kernels of a survey's layers.

    Exit code 0: it is written; 1: there is no such survey, or no server.

    Example: kernelscope surveys csv 0123456789abcdef0123456789abcdef -o kernels.csv
    """
    with remote(url, key) as client:
        text = client.survey_csv(survey_id)
    if output:
        output.write_text(text, encoding="utf-8", newline="")
        say(f"{text.count(chr(10)) - 1:,} kernels are in {output}", out)
    else:
        typer.echo(text, nl=False)


@surveys.command()
def kernel(  # noqa: PLR0913 - the options of a command
    network: Annotated[str, typer.Argument(help="Network, such as vgg16.")],
    layer: Annotated[str, typer.Argument(help="Layer, such as conv3_3.")],
    kernel: Annotated[int, typer.Argument(min=0, help="Number of the kernel, from 0.")],
    survey: OfSurvey = None,
    url: Url = None,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what a survey found about one kernel.

    Exit code 0: it is shown; 1: there is no such kernel, layer or survey, or no server.

    Example: kernelscope surveys kernel vgg_mini conv2_2 3
    """
    with remote(url, key) as client:
        page = client.kernel(network, layer, kernel, survey)
    if as_json:
        document(plain(page)[0])
        return
    out.print(in_words(page))
    if page.top:
        out.print(_top(page))


@surveys.command()
def publish(survey_id: SurveyId, data_dir: DataDir = None, *, as_json: AsJson = False) -> None:
    """Make a survey readable for everyone. Needs the settings of the object store, as an operator has them.

    Exit code 0: it is public; 1: there is no such survey, or no object store.

    Example: kernelscope surveys publish 0123456789abcdef0123456789abcdef
    """
    settings = local_settings(data_dir=data_dir)
    store = BlobStore(settings.store)
    Surveys(store, DataSets(store, settings.max_dataset_images)).publish(survey_id)
    if as_json:
        document({"published": survey_id})
    else:
        say(f"{survey_id} is public now", out)


def named(known: list[DataSet], name: str) -> DataSet:
    """The data set of this id or name: a caller's own before public ones.

    Raises:
        UnknownDataSet.
    """
    for found in (
        [one for one in known if one.id == name],
        [one for one in known if one.name == name and one.mine],
        [one for one in known if one.name == name],
    ):
        if len(found) > 1:
            ids = ", ".join(one.id for one in found)
            raise UnknownDataSet(f"{len(found)} data sets have the name {name!r}; give the id of one: {ids}")
        if found:
            return found[0]
    there = ", ".join(one.name for one in known) or "none"
    raise UnknownDataSet(
        f"no data set has the name or id {name!r}; there are: {there}; `kernelscope datasets add FOLDER` creates one"
    )


def in_words(page: KernelPage) -> str:
    """What a survey found about a kernel, in a few sentences."""
    survey, who = page.survey, f"Kernel {page.kernel} of {page.layer.name} of {page.network}"
    so_far = "" if survey.surveyed == survey.images else " that were surveyed so far"
    over = f"the {survey.surveyed:,} images of {survey.dataset_name!r}{so_far}"
    if not page.top:
        return f"{who} is active in none of {over}."
    most = page.top[0]
    sentences = [
        f"{who} is active in {page.active_images:.1%} of {over}, at {page.active:.2%} of all positions; its mean "
        f"activation is {page.mean:.3g}.",
        f"It is most active in {most.name!r}: {most.activation:.3g}.",
    ]
    if page.similar:
        named = ", ".join(f"{one.kernel} ({one.correlation:.2f})" for one in page.similar[:MOST_SIMILAR])
        sentences.append(f"Kernels that the same images activate, with their correlations: {named}.")
    if page.explanation:
        sentences.append(_explained(page.explanation))
    return " ".join(sentences)


def _explained(found: Explanation) -> str:
    """How many X̂ are made, and their scores."""
    scores = {name: getattr(found, name) for name in ("consistency", "discrimination", "colour")}
    shown = "; ".join(
        f"{name} {score.value:.2f}" + ("" if score.error is None else f" ± {score.error:.2f}")
        for name, score in scores.items()
        if score
    )
    return f"X̂ of {found.made} of {found.of} of its top images are made" + (f": {shown}." if shown else ".")


def _top(page: KernelPage) -> Table:
    numbers = ("activation", "row", "column", "SSIM")
    made = table("the images that activate it most", "", "image", *numbers, "sees", "X̂", right=numbers)
    for one in page.top:
        ssim = "–" if one.ssim is None else f"{one.ssim:.3f}"
        sees = f"{one.box[0]}–{one.box[2]}, {one.box[1]}–{one.box[3]}"
        place = (f"{one.activation:.3g}", str(one.row), str(one.column))
        x = one.error or ("made" if one.picture else "")
        made.add_row(str(one.rank + 1), one.name, *place, ssim, sees, x)
    made.caption = "sees: pixels of the network's input from left to right, from top to bottom."
    return made


def _follow(job: Job) -> None:
    """A progress bar until the survey has ended; Ctrl-C leaves it running."""
    try:
        with progress() as bar:
            task = bar.add_task(state(job), total=1.0)
            job.wait(on_change=lambda seen: bar.update(task, description=state(seen), completed=seen.progress.fraction))
            bar.update(task, description=state(job), completed=job.progress.fraction)
    except KeyboardInterrupt:
        say(
            f"the survey continues; `kernelscope surveys follow {job.id}` waits for it, `kernelscope cancel {job.id}` "
            "ends it"
        )
        raise
    job.check()


def _show(survey: Survey, *, as_json: bool) -> None:
    if as_json:
        document(plain(survey)[0])
        return
    done = f"{survey.surveyed:,} of {survey.images:,} images"
    say(f"survey {survey.id} of {survey.dataset_name}: {survey.status}, {done}", out)
    first = survey.layers[0]
    say(f"`kernelscope surveys kernel {survey.model} {first} 0` shows a kernel of it", out)
