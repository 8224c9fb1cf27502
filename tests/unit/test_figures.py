"""The pictures that show a result."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from api.pictures import figures
from api.pictures.colours import Scale, difference, heat
from api.pictures.evidence import Arrays, Evidence
from api.pictures.figures import draw
from api.pictures.layout import LINE, MARGIN, TILE
from shared.jobs import DRAWN_ARTIFACTS
from shared.schemas import ExplainRequest, ItemResult, WeightsUsed
from tests.conftest import noise
from worker.engine.dummy import DummyDevice
from worker.engine.engine import Engine
from worker.engine.questions import Question

SHOWN = [  # of each kernel 400 by suppression and one by lrp
    ("panel.png", 0, ([*range(15), 400], 385)),
    ("panel.png", 401, ([*range(401, 416), 801], 385)),
    ("panel.png", 300, ([*range(14), 300, 400], 385)),
    ("sweep.png", 3, ([*range(16)], 384)),
    ("sweep.png", 399, ([*range(15), 399], 384)),
    ("sweep.png", 801, ([801], 0)),
    ("others.png", 300, ([300], 0)),
]


def evidence(side: int = 12, after: float = 0.5) -> Evidence:
    """A result of the dummy engine, with maps of this side; the kernel's is `after` times as bright after."""
    request = ExplainRequest(images=["0" * 64], model="vgg_mini", layer="conv1_1", kernels=[3])
    picture = np.asarray(noise(96, 96))
    question = Question("vgg_mini", "conv1_1", picture, 3, 1.0, 1.0, "fast", "quick", 2)
    engine = Engine(DummyDevice())
    ((_, answer),) = engine.ask([question])
    engine.close()
    assert not isinstance(answer, Exception)
    result = ItemResult(
        index=0,
        image="0" * 64,
        kernel=3,
        method="suppression",
        alpha=1,
        beta=1,
        status="succeeded",
        losses=answer.losses,
        loss_start=2,
        loss_blank=1,
        metrics=answer.metrics,
        iterations=2,
        seconds=0.1,
        stopped="budget",
        weights=WeightsUsed(source="dummy", sha256="0" * 64),
    )
    ramp = np.linspace(0, 2, side * side, dtype=np.float32).reshape(side, side)
    two = np.stack([ramp, ramp])
    maps: Arrays = {"before": ramp, "after": after * ramp, "others_before": two, "others_after": 0 * two}
    pictures = {"original.png": Image.fromarray(picture), "optimized.png": Image.fromarray(answer.picture)}
    files: dict[str, Arrays] = {"maps.npz": {**maps, "others": np.array([1, 2])}, "optimized.npy": {"x": answer.x}}
    return Evidence(request, result, pictures.__getitem__, files.__getitem__)


@pytest.mark.parametrize("name", DRAWN_ARTIFACTS)
@pytest.mark.parametrize("side", [1, 12, 224])
def test_every_artifact_is_a_png_that_can_be_seen(name: str, side: int) -> None:
    """At least 96 pixels wide, whatever the map's size."""
    picture = Image.open(BytesIO(draw(name, evidence(side))))
    assert picture.format == "PNG"
    assert min(picture.size) >= 96


def brightness(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Perceived, of each pixel."""
    return np.asarray(picture.convert("L")).astype(np.float64)


def test_maps_share_one_scale_before_and_after() -> None:
    """Half the activation is drawn darker, not stretched to the same brightness; more is always brighter."""
    maps = evidence()
    before, after = (brightness(heat(each, maps.scale)) for each in (maps.before, maps.after))
    assert after.max() < 0.8 * before.max()
    assert (np.diff(before.ravel()) >= 0).all()


def test_a_difference_of_zero_is_neutral() -> None:
    """White in the middle, blue below, red above."""
    change = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    blue, white, red = np.asarray(difference(change, 1.0))[0].astype(int)
    assert blue[2] > blue[0] + 30
    assert red[0] > red[2] + 30
    assert white.min() > 200


def test_the_contrast_stretch_keeps_the_mean_colour_neutral() -> None:
    """An empty X̂ is all mid-grey; a faint one is made visible."""
    empty = np.zeros((3, 8, 8), dtype=np.float32)
    assert np.asarray(figures.stretched(empty)).tolist() == np.full((8, 8, 3), 128).tolist()
    faint = empty.copy()
    faint[0, :4] = 0.01
    pixels = np.asarray(figures.stretched(faint))
    assert pixels[0, 0].tolist() == [255, 128, 128]
    assert pixels[7, 7].tolist() == [128, 128, 128]


def test_a_silent_map_is_drawn_black() -> None:
    """No division by a scale of zero."""
    assert brightness(heat(np.zeros((4, 4), dtype=np.float32), Scale(0.0))).max() < 5


def test_the_panel_has_a_row_for_each_method_and_each_beta() -> None:
    """Named; α and β only where they differ."""
    one = evidence()
    request = one.request
    rows = [("lrp", 1.0, 1.0), ("suppression", 1.0, 1.0), ("suppression", 1.0, 4.0)]
    several = [
        replace(one, result=one.result.model_copy(update={"index": index, "method": method, "alpha": a, "beta": b}))
        for index, (method, a, b) in enumerate(rows)
    ]
    assert [figures.named(each, several) for each in several] == [
        "LRP",
        "suppression, beta = 1",
        "suppression, beta = 4",
    ]
    assert figures.named(one, [one]) == "what kernel 3 sees"
    heights = [figures.panel(one, several[:count]).height for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > TILE
    assert request == one.request


@pytest.mark.parametrize(("name", "index", "expected"), SHOWN)
def test_a_figure_shows_sixteen_at_most(name: str, index: int, expected: tuple[list[int], int]) -> None:
    """Its own result among them, and the first ones of each method."""
    sweep = {"methods": ["suppression", "lrp"], "alpha": list(range(1, 21)), "beta": list(range(1, 21))}
    request = ExplainRequest(images=["0" * 64], layer="conv1_1", kernels=[3, 4], **sweep)
    assert figures.shown(name, request, index) == expected


def test_a_figure_says_how_many_it_does_not_show() -> None:
    """In words: it differs from one that shows all."""
    one = evidence()
    for name in figures.SIDE_BY_SIDE:
        assert draw(name, one, [one], 384) != draw(name, one, [one])
        assert draw(name, one, [one], 384) != draw(name, one, [one], 2)


def test_maps_share_one_scale_in_all_rows_of_a_panel() -> None:
    """A method that makes the kernel louder darkens the others' maps, not its own alone."""
    one = evidence()
    loud = evidence(after=4)
    alone, together = (np.asarray(figures.panel(one, rows)) for rows in ([one], [one, loud]))
    first = slice(MARGIN + 3 * LINE, MARGIN + 4 * LINE + TILE)
    assert together[first].mean() < alone[first].mean()
