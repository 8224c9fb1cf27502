"""Pictures become what a person sees, in 8-bit RGB."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from shared.errors import UnusableImage
from shared.images import decode, resized
from tests.conftest import encoded, noise, png

MANY = 10**8


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, (16, 16), colour)


def shown(data: bytes) -> list[int]:
    """The colour of a pixel in the middle."""
    pixel: list[int] = np.asarray(decode(data, MANY))[8, 8].tolist()
    return pixel


def test_alpha_is_flattened_on_white() -> None:
    """Half-transparent red is pink; a transparent palette entry is white."""
    assert shown(png(flat((255, 0, 0, 128), "RGBA"))) == pytest.approx([255, 127, 127], abs=1)
    palette = flat((0, 0, 0)).convert("P")
    assert shown(png(palette, transparency=palette.getpixel((0, 0)))) == [255, 255, 255]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    """Half of 65,535 is half of 255."""
    deep = Image.fromarray(np.full((16, 16), 0x8000, dtype=np.uint16))
    assert shown(png(deep)) == [128, 128, 128]


def test_cmyk_and_grey_become_rgb() -> None:
    """In the colours that a viewer would show."""
    assert shown(encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG", quality=95)) == pytest.approx([255, 0, 0], abs=6)
    assert shown(png(flat((77,), "L"))) == [77, 77, 77]


def test_exif_rotation_is_applied() -> None:
    """A picture that lies on its side is put upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(noise(40, 20), "JPEG", exif=exif.tobytes()), MANY).size == (20, 40)


def test_of_an_animation_the_first_frame_counts() -> None:
    """The others are not looked at."""
    frames = [flat((0, 255, 0)), flat((255, 0, 0))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert shown(data) == [0, 255, 0]


def test_the_pixel_limit_counts_pixels() -> None:
    """Exactly the limit is taken, one more row is not."""
    assert decode(png(noise(40, 25)), 1000).size == (40, 25)
    with pytest.raises(UnusableImage, match="40×26"):
        decode(png(noise(40, 26)), 1000)


def test_every_truncation_is_refused_or_whole(subtests: pytest.Subtests) -> None:
    """Cut anywhere, a file is either refused or decoded to the full picture; nothing else is raised."""
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise(), form)
        for length in range(16, len(data), max(1, len(data) // 60)):
            with subtests.test(form=form, length=length), contextlib.suppress(UnusableImage):
                assert decode(data[:length], MANY).size == (64, 48)


def test_resizing_squashes_and_antialiases() -> None:
    """A fine checkerboard becomes grey, not stripes; the whole picture is kept."""
    board = Image.fromarray(np.indices((448, 896)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    small = np.asarray(resized(board, 224))
    assert small.shape == (224, 224, 3)
    assert np.abs(small.astype(int) - 127).max() <= 8
