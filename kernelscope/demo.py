"""`kernelscope demo`: the main job on two pictures, through the HTTP API.

The first is a photograph and the deepest layer that the weights cover: what two kernels see, by evidence and by the
paper's method, side by side. The second is the paper's Figure 1: on an image of all colours, X̂ of a colour-selective
kernel shows that colour only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from rich.table import Table

from kernelscope import terminal
from kernelscope.client import Client, Job, Result
from kernelscope.serving import server, usable
from kernelscope.terminal import document, numbers_table, plain, progress, say
from shared.drawings import all_colours, scene
from shared.schemas import Status

DEEPEST = ("conv5_3", "conv4_3", "conv3_3", "conv2_2", "conv1_2", "conv1_1")
CANDIDATES = 8
HUE_WINDOW = 45  # degrees
BOTH = ("evidence", "suppression")


class DemoError(Exception):
    """The demonstration cannot continue; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A picture, and the kernels that are explained on it."""

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


def run(out: Path, url: str | None, key: str | None, weights_dir: Path | None, *, as_json: bool) -> None:
    """Explain, print the table, write the pictures, on the server that `explain` would use.

    Raises:
        DemoError, StackError, ClientError.
    """
    with server(url, key, weights_dir, "vgg16") as client:
        plan = _plan(client)
        out.mkdir(parents=True, exist_ok=True)
        with progress() as bar:
            kernel, hue = _colour_kernel(client, plan, bar)
            first = _explain(client, plan, plan.colours, str(kernel), bar)
            second = _explain(client, plan, plan.picture, plan.kernels, bar, effort="quick", methods=BOTH)
        results = [(plan.picture, result) for result in second.results]
        results += [(plan.colours, result) for result in first.results]
        results = [(subject, result) for subject, result in results if result.status == "succeeded"]
        written = _write(out, results)
        if as_json:
            document({"jobs": plain(second, first), "files": list(map(str, written))})
            return
        terminal.out.print(_table(results))
        _describe(out, plan, kernel, hue, _fraction_near(first.results[0], hue))


def _describe(out: Path, plan: Plan, kernel: int, hue: float, fraction: float) -> None:
    """Print what the figures show."""
    panels = f"{_slug(plan.picture.title)}-*-panel.png"
    lines = (
        f"The figures are in {out}/:",
        f"  {panels}: top left the {plan.picture.title}, below it what the kernel responds to in it: by evidence, "
        "which avoids activation that the image does not cause, and by Zhuang et al.'s method exactly, which does not. "
        "The selected kernel's map stays; the others become weaker, by how much is below each row.",
        f"  all-colours-*-panel.png: kernel {kernel} of {plan.colours.layer} was chosen because, of the {CANDIDATES} "
        f"most active ones, it responds to the narrowest range of hues, around {hue:.0f}° ({_hue_name(hue)}). X̂ keeps "
        f"that colour and makes the rest grey: {fraction:.0%} of the colour in it is within {HUE_WINDOW}° of that hue.",
    )
    for line in lines:
        terminal.out.print(line)


def _plan(client: Client) -> Plan:
    """VGG-16 as far as its weights reach; without them the small bundled network."""
    name = usable(client, None)
    network = client.model(name)
    if name == "vgg16":
        covered = [layer.name for layer in network.layers if layer.available is not False]
        deepest = next(layer for layer in DEEPEST if layer in covered)
        say(f"network: VGG-16, weights {network.weights or 'not known yet'}; explained here: conv1_1 and {deepest}")
        return Plan(
            name,
            Subject("all colours", all_colours(network.frame.width), "conv1_1"),
            Subject("photograph", _photograph(), deepest),
            "top:2",
        )
    say(f"{network.title} ({network.weights}) on pictures of the kind it was trained on")
    size = network.frame.width
    return Plan(
        name,
        Subject("all colours", all_colours(size), "conv1_2"),
        Subject("drawn figures", scene(2, size).image, "conv2_2"),
        "top:4",
    )


def _photograph() -> Image.Image:
    """Chelsea the cat, by Stéfan van der Walt (CC0), as scikit-image ships it; without it the page's sample."""
    try:
        from skimage.data import chelsea
    except ImportError:  # in the API's image
        with files("api").joinpath("web", "astronaut.jpg").open("rb") as file:
            return Image.open(file).convert("RGB")
    return Image.fromarray(chelsea())


def _explain(client: Client, plan: Plan, subject: Subject, kernels: str, bar: Progress, **options: Any) -> Job:
    """One job, with its progress on the bar."""
    job = client.explain(subject.picture, model=plan.model, layer=subject.layer, kernels=kernels, **options)
    task = bar.add_task(f"{subject.title}, {subject.layer}, kernel {kernels}", total=1.0)
    job.wait(on_change=lambda now: bar.update(task, completed=now.progress.fraction))
    if job.status is not Status.SUCCEEDED:
        raise DemoError(f"job {job.id} {job.status}: {job.error.detail if job.error else 'no reason given'}")
    bar.update(task, completed=1.0)
    return job


def _colour_kernel(client: Client, plan: Plan, bar: Progress) -> tuple[int, float]:
    """Of the most active kernels on the all-colours image, the one that responds to the narrowest range of hues.

    The rule: the largest |Σ F·e^{iθ}| / Σ F, with F the kernel's feature map and θ the hue under each position.
    Returns the kernel and the hue, in degrees, at which its response is centred.
    """
    job = _explain(client, plan, plan.colours, f"top:{CANDIDATES}", bar, effort="quick")
    best = (0.0, 0, 0.0)
    for result in job.results:
        if result.status == "succeeded" and result.kernel is not None:
            maps = result.maps["before"]
            weight = maps.astype(np.float64)
            angle = np.deg2rad(_hues(plan.colours.picture.resize(weight.shape[::-1])))
            centre = (weight * np.exp(1j * angle)).sum() / weight.sum()
            best = max(best, (abs(centre), result.kernel, float(np.rad2deg(np.angle(centre))) % 360))
    return best[1], best[2]


def _fraction_near(result: Result, hue: float) -> float:
    """Of the colour in X̂, measured as distance from the mean colour, the fraction whose hue is near this one."""
    x = result.optimized_array
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


def _write(out: Path, results: list[tuple[Subject, Result]]) -> list[Path]:
    written = []
    for subject, result in results:
        for name in ("panel.png", "optimized.png", "contrast.png"):
            who = f"kernel{result.kernel}-{result.method}" if name != "panel.png" else f"kernel{result.kernel}"
            file = out / f"{_slug(subject.title)}-{subject.layer}-{who}-{name}"
            file.write_bytes(result.file(name))
            written.append(file)
    return written


def _slug(title: str) -> str:
    return title.replace(" ", "-")


def _table(results: list[tuple[Subject, Result]]) -> Table:
    title = "X̂ as delivered (8 bits), fed back through the network"
    before = {
        "layer": [subject.layer for subject, _ in results],
        "method": [result.method for _, result in results],
    }
    return numbers_table(title, before, [result for _, result in results])
