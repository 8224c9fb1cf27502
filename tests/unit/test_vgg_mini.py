"""The bundled network: small, accurate, and as its file says."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors import safe_open

from shared import drawings
from worker.networks.vgg_mini import WEIGHTS_FILE, VggMini
from worker.networks.vgg_mini.train import accuracy, folded, pictures


def trained() -> VggMini:
    """The network with its weights."""
    model = VggMini().eval()
    with safe_open(WEIGHTS_FILE, "pt") as tensors:
        names = tensors.keys()
        model.load_state_dict({name: tensors.get_tensor(name) for name in names})
    return model


def test_the_file_is_small_and_says_what_it_is() -> None:
    """At most 2 MB, with its normalisation and the accuracy of its training."""
    assert WEIGHTS_FILE.stat().st_size <= 2_000_000
    with safe_open(WEIGHTS_FILE, "pt") as tensors:
        metadata = tensors.metadata()
    assert metadata["arch"] == "vgg_mini"
    assert metadata["normalization_mean"] == "0.5,0.5,0.5"
    assert json.loads(metadata["held_out_accuracy"])["all"] >= 0.95


def test_it_names_figures_that_it_has_never_seen() -> None:
    """Shape, colour and texture are all right on at least 95 % of new pictures."""
    images, labels = pictures(np.random.default_rng(987), 200)
    assert accuracy(trained(), images, labels)["all"] >= 0.95


def test_folding_the_batch_normalisation_changes_nothing() -> None:
    """The folded VGG computes the same as the trained one."""
    torch.manual_seed(0)
    model = VggMini(batch_norm=True).train()
    images = torch.randn(8, 3, 96, 96)
    model(images)  # moves the running statistics
    with torch.no_grad():
        assert torch.allclose(folded(model)(images), model.eval()(images), atol=1e-4)


def test_drawings_know_their_pixels() -> None:
    """A solid figure has its colour in every pixel, nothing outside changes, later figures cover earlier ones."""
    size = 64
    background = drawings.random_background(np.random.default_rng(0), size)
    red = drawings.Figure("square", "solid", hue=0, x=0.4, y=0.4, radius=0.3)
    green = drawings.Figure("circle", "solid", hue=120, x=0.6, y=0.6, radius=0.2)
    drawing = drawings.draw([red, green], size, background)
    pixels, before = np.asarray(drawing.image), np.asarray(background)
    assert not (drawing.shapes[0] & drawing.shapes[1]).any()
    for mask, colour in zip(drawing.shapes, ([255, 0, 0], [0, 255, 0]), strict=True):
        close = np.abs(pixels[mask].astype(int) - colour).max(axis=1) <= 130  # edge pixels are half covered
        assert close.mean() > 0.95
    untouched = (pixels == before).all(axis=2)
    assert not untouched[drawing.shapes[0] | drawing.shapes[1]].all()
    assert untouched[:8, :8].all()


def test_textures_have_ink_and_paper() -> None:
    """Solid is all ink; the others leave a quarter to three quarters of the shape unpainted."""
    background = drawings.random_background(np.random.default_rng(0), 96)
    for texture in drawings.TEXTURES:
        figure = drawings.Figure("circle", texture, hue=240, radius=0.4)
        drawing = drawings.draw([figure], 96, background)
        share = drawing.inks[0].sum() / drawing.shapes[0].sum()
        assert share == 1 if texture == "solid" else 0.25 < share < 0.75, texture


def test_all_colours_has_every_hue_white_and_black() -> None:
    """The image of the paper's Figure 1."""
    pixels = np.asarray(drawings.all_colours(224).convert("HSV"))
    assert len(np.unique(pixels[112, :, 0])) > 200
    assert (np.asarray(drawings.all_colours(224))[0] >= 254).all()
    assert (np.asarray(drawings.all_colours(224))[-1] <= 1).all()


def test_the_scene_is_reproducible() -> None:
    """The same seed gives the same picture."""
    assert drawings.scene(3, 96).image.tobytes() == drawings.scene(3, 96).image.tobytes()
    assert drawings.scene(3, 96).image.tobytes() != drawings.scene(4, 96).image.tobytes()
