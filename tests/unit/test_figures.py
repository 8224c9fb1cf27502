"""The pictures that show a result."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from api import figures
from api.drawing import draw
from shared.jobs import DRAWN_ARTIFACTS
from shared.schemas import ExplainRequest, ItemResult, WeightsUsed
from tests.conftest import noise
from worker.dummy import DummyDevice
from worker.engine import Engine
from worker.questions import Question


def evidence(side: int = 12) -> figures.Evidence:
    """A result of the dummy engine, with maps of this side."""
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
    return figures.Evidence(
        request=request,
        result=result,
        original=Image.fromarray(picture),
        optimized=Image.fromarray(answer.picture),
        x=answer.x,
        before=ramp,
        after=0.5 * ramp,
        others=[1, 2],
        others_before=np.stack([ramp, ramp]),
        others_after=0 * np.stack([ramp, ramp]),
    )


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
    before, after = (brightness(figures.heat(each, maps.scale)) for each in (maps.before, maps.after))
    assert after.max() < 0.8 * before.max()
    assert (np.diff(before.ravel()) >= 0).all()


def test_a_difference_of_zero_is_neutral() -> None:
    """White in the middle, blue below, red above."""
    change = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    blue, white, red = np.asarray(figures.difference(change, 1.0))[0].astype(int)
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
    assert brightness(figures.heat(np.zeros((4, 4), dtype=np.float32), 0.0)).max() < 5


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
    assert heights[2] - heights[1] == heights[1] - heights[0] > figures.TILE
    assert request == one.request


def test_maps_share_one_scale_in_all_rows_of_a_panel() -> None:
    """A method that makes the kernel louder darkens the others' maps, not its own alone."""
    one = evidence()
    loud = replace(one, after=4 * one.before)
    alone, together = (np.asarray(figures.panel(one, rows)) for rows in ([one], [one, loud]))
    first = slice(figures.MARGIN + 3 * figures.LINE, figures.MARGIN + 4 * figures.LINE + figures.TILE)
    assert together[first].mean() < alone[first].mean()
