"""`kernelscope demo`: the main job on two pictures, through the HTTP API of a private stack.

The first is the paper's Figure 1: on an image of all colours, X̂ of a colour-selective kernel shows that colour only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kernelscope.client import Client
from kernelscope.stack import Stack, check_weights, free_port
from shared.drawings import all_colours, scene
from shared.schemas import ItemResult, Job, Status
from shared.settings import Settings

CANDIDATES = 8
HUE_WINDOW = 45  # degrees


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True)
class Subject:
    """What is explained where."""

    title: str
    picture: Image.Image
    layer: str


@dataclass(frozen=True)
class Plan:
    """The network and the pictures of one demonstration."""

    model: str
    colours: Subject
    picture: Subject
    kernels: str  # of the second picture


def run(settings: Settings, out: Path, console: Console) -> None:
    """Set up a private stack, explain, print the table, write the pictures, stop.

    Raises:
        DemoError, StackError.
    """
    with TemporaryDirectory(prefix="kernelscope-demo-") as folder:
        weights = settings.weights
        own = {
            "data_dir": Path(folder),
            "store_url": "",
            "weights_dir": weights,
            "port": free_port(),
            "host": "127.0.0.1",
        }
        settings = settings.model_copy(update={**own, "preload": ("vgg16",)})
        for line in check_weights(settings):
            console.print(line)
        console.print("starting a private stack: Redis, worker, API …")
        with Stack(settings, console.print).running() as stack, Client(stack.url) as client:
            _show(client, out, console)
    console.print("the stack is stopped; nothing is left but the pictures")


def _show(client: Client, out: Path, console: Console) -> None:
    plan = _plan(client, console)
    out.mkdir(parents=True, exist_ok=True)
    with _progress(console) as bar:
        kernel, hue = _colour_kernel(client, plan, bar)
        first = _explain(client, plan, plan.colours, str(kernel), bar)
        second = _explain(client, plan, plan.picture, plan.kernels, bar)
    results = [(plan.colours, result) for result in first.results] + [
        (plan.picture, result) for result in second.results
    ]
    results = [(subject, result) for subject, result in results if result.status == "succeeded"]
    console.print(_table(results))
    _write(client, out, results)
    share = _share_near(client, first.results[0], hue)
    console.print(f"\nLook at [bold]{out}/[/bold]:")
    console.print(
        f"  all-colours-*-panel.png: kernel {kernel} of {plan.colours.layer} was chosen because, "
        f"of the {CANDIDATES} most active ones, it answers to the narrowest range of hues, around {hue:.0f}° "
        f"({_hue_name(hue)}). X̂ keeps that colour and greys the rest: {share:.0%} of the colour in it is within "
        f"{HUE_WINDOW}° of that hue."
    )
    console.print(
        f"  {_slug(plan.picture.title)}-*-panel.png: top left the {plan.picture.title}, below it what the kernel "
        "responds to in it. The selected kernel's map stays; the other kernels' maps go dark."
    )


def _plan(client: Client, console: Console) -> Plan:
    """VGG16 as far as its weights reach; where they cannot be had, the small network that comes with the program."""
    vgg16 = client.model("vgg16")
    if vgg16.available:
        covered = [layer.name for layer in vgg16.layers if layer.available]
        deepest = next(name for name in ("conv3_3", "conv2_2", "conv1_2", "conv1_1") if name in covered)
        console.print(f"network: VGG-16, weights {vgg16.weights}; explained here: conv1_1 and {deepest}")
        return Plan(
            "vgg16",
            Subject("all colours", all_colours(vgg16.input_size), "conv1_1"),
            Subject("photograph", _photograph(), deepest),
            "top:2",
        )
    mini = client.model("vgg_mini")
    console.print(f"[yellow]VGG-16 cannot be had here:[/yellow] {vgg16.reason}")
    console.print(f"network instead: {mini.title} ({mini.weights}), on pictures of the kind it was trained on")
    size = mini.input_size
    return Plan(
        "vgg_mini",
        Subject("all colours", all_colours(size), "conv1_2"),
        Subject("drawn figures", scene(2, size).image, "conv2_2"),
        "top:4",
    )


def _photograph() -> Image.Image:
    """Chelsea the cat, by Stéfan van der Walt (CC0), as scikit-image ships it."""
    try:
        from skimage.data import chelsea
    except ImportError:
        raise DemoError("scikit-image is not installed, which has the photograph; install kernelscope[demo]") from None
    return Image.fromarray(chelsea())


def _explain(
    client: Client, plan: Plan, subject: Subject, kernels: str, bar: Progress, effort: str = "standard"
) -> Job:
    """One job, with its progress on the bar."""
    buffer = BytesIO()
    subject.picture.save(buffer, "PNG")
    job = client.explain([buffer.getvalue()], model=plan.model, layer=subject.layer, kernels=kernels, effort=effort)
    task = bar.add_task(f"{subject.title}, {subject.layer}, kernel {kernels}", total=1.0)

    def show(now: Job) -> None:
        bar.update(task, completed=_done(now))

    job.wait(on_change=show)
    if job.status is not Status.SUCCEEDED:
        raise DemoError(f"job {job.id} {job.status}: {job.error.detail if job.error else 'no reason given'}")
    return job


def _done(job: Job) -> float:
    """Share of the job that is done, the running items' iterations included."""
    if job.status.terminal:
        return 1.0
    progress = job.progress
    if not progress.total:
        return 0.0
    running = (progress.iteration or 0) / (progress.budget or 1)
    return (progress.completed + (progress.total - progress.completed) * running) / progress.total


def _colour_kernel(client: Client, plan: Plan, bar: Progress) -> tuple[int, float]:
    """Of the most active kernels on the all-colours image, the one that answers to the narrowest range of hues.

    The rule: the largest |Σ F·e^{iθ}| / Σ F, with F the kernel's feature map and θ the hue under each position.
    Returns the kernel and the hue, in degrees, at which its response is centred.
    """
    job = _explain(client, plan, plan.colours, f"top:{CANDIDATES}", bar, effort="quick")
    best = (0.0, 0, 0.0)
    for result in job.results:
        if result.status == "succeeded" and result.kernel is not None:
            maps = np.load(BytesIO(client.file(result.artifacts["maps.npz"])))["before"]
            weight = maps.astype(np.float64)
            angle = np.deg2rad(_hues(plan.colours.picture.resize(weight.shape[::-1])))
            centre = (weight * np.exp(1j * angle)).sum() / weight.sum()
            best = max(best, (abs(centre), result.kernel, float(np.rad2deg(np.angle(centre))) % 360))
    return best[1], best[2]


def _share_near(client: Client, result: ItemResult, hue: float) -> float:
    """Of the colour in X̂, measured as distance from the mean colour, the share whose hue is near this one."""
    x = np.load(BytesIO(client.file(result.artifacts["optimized.npy"])))  # (3, H, W), 0 is the mean colour
    strength = np.abs(x).max(axis=0)
    colour = (x - x.min(axis=0)) / max(float(strength.max()), 1e-6)
    pixels = Image.fromarray((255 * colour.transpose(1, 2, 0)).clip(0, 255).astype(np.uint8))
    distance = np.abs((_hues(pixels) - hue + 180) % 360 - 180)
    return float(strength[distance <= HUE_WINDOW].sum() / max(float(strength.sum()), 1e-6))


def _hues(picture: Image.Image) -> NDArray[np.float64]:
    """Hue of each pixel in degrees, (H, W)."""
    return np.asarray(picture.convert("HSV"))[:, :, 0].astype(np.float64) / 256 * 360


def _hue_name(hue: float) -> str:
    names = ("red", "yellow", "green", "cyan", "blue", "magenta")
    return names[round(hue / 60) % 6]


def _write(client: Client, out: Path, results: list[tuple[Subject, ItemResult]]) -> None:
    for subject, result in results:
        for name in ("panel.png", "optimized.png", "contrast.png"):
            file = out / f"{_slug(subject.title)}-{subject.layer}-kernel{result.kernel}-{name}"
            file.write_bytes(client.file(result.artifacts[name]))


def _slug(title: str) -> str:
    return title.replace(" ", "-")


def _table(results: list[tuple[Subject, ItemResult]]) -> Table:
    title = "X̂ as delivered (8 bits), fed back through the network"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("picture, layer", "kernel", "SSIM", "others", "grey", "loss", "start", "blank", "s"):
        table.add_column(name, justify="left" if name == "picture, layer" else "right", no_wrap=True)
    for subject, result in results:
        table.add_row(f"{subject.title}, {subject.layer}", *_cells(result))
    table.caption = (
        "SSIM: how well the kernel's map is kept. others: share of the other kernels' activation that is left. "
        "grey: pixels at the mean colour. loss: of X̂, of the original (start) and of an empty picture (blank)."
    )
    return table


def _cells(result: ItemResult) -> Iterator[str]:
    metrics, losses = result.metrics, result.losses
    assert metrics
    assert losses
    yield str(result.kernel)
    yield "–" if metrics.ssim is None else f"{metrics.ssim:.3f}"
    yield f"{metrics.leakage:.0%}"
    yield f"{metrics.sparsity:.0%}"
    yield from (f"{loss:.3f}" for loss in (losses.total, result.loss_start, result.loss_blank))
    yield f"{result.seconds:.1f}"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield bar
