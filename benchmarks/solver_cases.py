"""The problems of `benchmarks.solver`, with the reference procedure's results on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.random_weights import vgg16_cut
from shared import catalogue, images
from shared.drawings import all_colours, scene
from worker.engine.quality import map_ssim
from worker.methods.suppression import PixelSpace, Problems, ReferenceSolver, Solution, losses, solve
from worker.networks.loaded import Networks

CPU = torch.device("cpu")
NEAR = 1.01  # the reference's final loss + 1 % counts as reached
MINI_PROBLEMS = (("conv1_2", 0), ("conv2_2", 1), ("conv3_2", 0), ("conv4_2", 2))  # layer, rank of the kernel

Curve = list[tuple[int, float]]  # (evaluations, lowest loss until then)


@dataclass(frozen=True)
class Reference:
    """The result of the reference procedure, where it is known."""

    loss: float | None = None
    evals: int | None = None  # until the loss was within 1 % of `loss`; None where it diverged
    ssim: float | None = None
    mse_others: float | None = None
    curve: Curve = field(default_factory=list)


@dataclass
class Case:
    """One problem, with the result of the reference procedure."""

    name: str
    cut: nn.Module
    problem: Problems
    space: PixelSpace
    reference: Reference
    target_loss: float | None
    best_known: float | None
    from_file: bool

    @property
    def frame(self) -> images.Frame:
        """The frame of the input."""
        return images.Frame(*self.problem.image.shape[-2:])


def posed(cut: nn.Module, space: PixelSpace, picture: Image.Image, kernel: int) -> Problems:
    """The problem of one kernel on one picture, α = β = 1."""
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    image = space.from_bytes(pixels).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = cut(image).clamp_min(0)
    one = torch.ones(1)
    return Problems.pose(image, features, torch.tensor([kernel]), one, one)


def reference_cases(weights: Path, folder: Path, file: Path) -> Iterator[Case]:
    """The problems of a reference file."""
    networks = Networks(weights, CPU, download=False)
    for entry in json.loads(file.read_text())["problems"]:
        network = networks.get(entry["model"])
        layer = catalogue.network(entry["model"]).layer(entry["layer"]).name
        picture = images.resized(images.decode((folder / entry["image"]).read_bytes(), 10**9), network.frame)
        found = entry["reference"]
        reference = Reference(
            loss=found["final_loss"],
            evals=_first_near(found),
            ssim=found.get("ssim"),
            mse_others=found.get("mse_others"),
            curve=sorted((int(count), loss) for count, loss in found["curve"].items()),
        )
        yield Case(
            name=entry["name"],
            cut=network.layer(layer).cut,
            problem=posed(network.layer(layer).cut, network.space, picture, entry["kernel"]),
            space=network.space,
            reference=reference,
            target_loss=entry["target_loss"],
            best_known=entry["best_known"],
            from_file=True,
        )


def _first_near(reference: dict[str, Any]) -> int | None:
    """The first recorded count at which the reference is within 1 % of its end; None where it diverged."""
    if reference.get("diverged"):
        return None
    curve = {int(count): loss for count, loss in reference["curve"].items()}
    return next(count for count, loss in sorted(curve.items()) if loss <= NEAR * reference["final_loss"])


def mini_cases(iterations: int) -> Iterator[Case]:
    """Kernels of the bundled network; the reference procedure is run here."""
    network = Networks(Path("/nonexistent"), CPU, download=False).get("vgg_mini")
    for layer, rank in MINI_PROBLEMS:
        picture = all_colours(network.frame.width) if layer == "conv1_2" else scene(5, network.frame.width).image
        cut = network.layer(layer).cut
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
        means = network.layer(layer).features(network.space.from_bytes(pixels))[0].mean(dim=(1, 2))
        kernel = int(means.argsort(descending=True)[rank])
        problem = posed(cut, network.space, picture, kernel)
        (solution,) = solve(cut, problem, ReferenceSolver(budget=iterations))
        final, alike = float_quality(cut, problem, solution.x)
        curve = lowest_losses(solution)
        near = next(count for count, loss in curve if loss <= NEAR * final)
        reference = Reference(final, near, alike, mse_of_others(cut, problem, solution.x), curve)
        name = f"vgg_mini/{layer}/{kernel}"
        yield Case(name, cut, problem, network.space, reference, NEAR * final, final, from_file=False)


def random_case() -> Case:
    """VGG-16 conv5_3 with random weights and no reference, for its speed."""
    cut = vgg16_cut("conv5_3")
    space = PixelSpace.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    problem = posed(cut, space, scene(5, 224).image, 0)
    return Case("vgg16-random/conv5_3/0", cut, problem, space, Reference(), None, None, from_file=False)


@torch.no_grad()
def float_quality(cut: nn.Module, problem: Problems, x: Tensor) -> tuple[float, float]:
    """Total loss and SSIM of a float X̂, in float32."""
    after = cut(x[None]).clamp_min(0)
    alike = map_ssim(after[0, int(problem.kernel)], problem.target[0])
    assert alike is not None
    return float(losses(problem, after, x[None]).total), alike


@torch.no_grad()
def mse_of_others(cut: nn.Module, problem: Problems, x: Tensor) -> float:
    """Mean of F̂_j² over the other kernels."""
    after = cut(x[None])[0].clamp_min(0)
    keep = torch.arange(len(after)) != int(problem.kernel)
    return float(after[keep].square().mean())


def lowest_losses(solution: Solution) -> Curve:
    """The lowest loss up to each evaluation of the history."""
    best, rows = float("inf"), []
    for row in solution.history:
        best = min(best, row[-1])
        rows.append((row[0], best))
    return rows
