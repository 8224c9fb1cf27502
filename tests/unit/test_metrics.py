"""The metrics against scikit-image and against manual calculations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from shared.schemas import Metrics
from worker.engine.quality import map_ssim, metrics, png_regularization
from worker.methods.suppression import PixelSpace
from worker.methods.suppression.ssim import window_for

SPACE = PixelSpace.of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def maps(seed: int, *shape: int) -> torch.Tensor:
    """Random activations, half of them zero."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp_min(0)


def measured(before: torch.Tensor, after: torch.Tensor, kernel: int, picture: torch.Tensor) -> Metrics:
    """The metrics of one X̂ of two equal ones."""
    two = [one.expand(2, *one.shape) for one in (before, after, picture)]
    found, same = metrics(two[0], two[1], torch.tensor([kernel] * 2), two[2], SPACE)
    assert found == same
    return found


@pytest.mark.parametrize(("side", "window"), [(56, 11), (14, 11), (11, 11), (7, 7), (6, 5), (3, 3)])
def test_ssim_equals_scikit_image(side: int, window: int) -> None:
    """Gaussian window, population covariance, only windows that fit; data range from the original map."""
    before, after = maps(1, side, side), maps(2, side, side)
    assert window_for(side, side) == window
    found = map_ssim(after, before)
    sigma = 1.5 * window / 11
    _, every = structural_similarity(
        after.double().numpy(),
        before.double().numpy(),
        data_range=float(before.max()),
        gaussian_weights=True,
        sigma=sigma,
        truncate=(window // 2 + 0.01) / sigma,  # scikit-image's way to ask for a window of this side
        use_sample_covariance=False,
        full=True,
    )
    inner = slice(window // 2, side - window // 2)
    assert found == pytest.approx(float(every[inner, inner].mean()), abs=1e-9)


def test_ssim_paper_is_zero_padded_with_range_one() -> None:
    """The second definition equals the SSIM of maps with five zeros on each side."""
    before, after = maps(1, 20, 20), maps(2, 20, 20)
    framed = [torch.nn.functional.pad(each, (5, 5, 5, 5)) for each in (after, before)]
    found = map_ssim(after, before, data_range=1.0, padding=5)
    assert found == pytest.approx(map_ssim(framed[0], framed[1], data_range=1.0), abs=1e-12)


def test_a_map_of_one_position_has_no_ssim() -> None:
    """Null, not a meaningless number."""
    before, after = maps(1, 4, 1, 1) + 0.1, maps(2, 4, 1, 1)
    found = measured(before, after, 1, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert found.ssim is None
    assert found.ssim_window is None
    assert found.ssim_paper is None


def test_the_other_metrics_by_hand() -> None:
    """MSE over the others only, leakage as a ratio of sums, sparsity in whole pixels."""
    before = torch.zeros(3, 2, 2)
    before[0], before[1], before[2] = 1, 2, 3
    after = torch.zeros(3, 2, 2)
    after[0], after[1] = 1.5, 1
    picture = SPACE.mean_bytes.expand(3, 4, 4).clone()
    picture[0, 0, 0] += 1
    found = measured(before, after, 0, picture)
    assert found.mse_selected == pytest.approx(0.25)
    assert found.mse_others == pytest.approx((4 * 1 + 0) / 8)
    assert found.mse_others_before == pytest.approx((4 * 4 + 4 * 9) / 8)
    assert found.leakage == pytest.approx(4 / 20)
    assert found.sparsity == pytest.approx(15 / 16)


def test_a_grey_byte_counts_as_zero_in_the_png() -> None:
    """The mean colour is no 8-bit value; an empty pixel has the byte nearest to it."""
    picture = SPACE.mean_bytes.expand(3, 4, 4)[None].clone()
    assert float(png_regularization(picture, SPACE)) == 0
    picture[0, 1, 0, 0] += 10
    level = (float(picture[0, 1, 0, 0]) / 255 - 0.456) / 0.224
    assert float(png_regularization(picture, SPACE)) == pytest.approx(level / 48, rel=1e-5)


def test_bytes_round_trip() -> None:
    """Every displayable value survives normalisation and back."""
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(SPACE.to_bytes(SPACE.from_bytes(levels)), levels)
    assert np.allclose(SPACE.to_bytes(torch.full((3, 1, 1), 99.0)).numpy(), 255)
