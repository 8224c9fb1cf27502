"""Images are decoded as viewers show them, in 8-bit RGB, and made to fit a network's input."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from PIL import Image

from shared.errors import UnsupportedImage, UnusableImage
from shared.images import Frame, decode, resized
from tests.conftest import encoded, noise, png
from tests.unit.image_files import MANY, chunk, drawn, ends, flat, shown


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


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    """The other frames are ignored."""
    frames = [flat((0, 255, 0)), flat((255, 0, 0))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert shown(data) == [0, 255, 0]


def test_the_pixel_limit_counts_pixels() -> None:
    """Exactly the limit is accepted, one more row is not."""
    assert decode(png(noise(40, 25)), 1000).size == (40, 25)
    with pytest.raises(UnusableImage, match="40×26"):
        decode(png(noise(40, 26)), 1000)


def test_every_truncated_file_is_rejected_or_decoded_completely(subtests: pytest.Subtests) -> None:
    """A truncated file is either rejected or decoded completely; no other exception is raised."""
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise(), form)
        for length in range(16, len(data), max(1, len(data) // 60)):
            with subtests.test(form=form, length=length), contextlib.suppress(UnusableImage):
                assert decode(data[:length], MANY).size == (64, 48)


def test_resizing_squashes_and_antialiases() -> None:
    """A fine checkerboard becomes grey, not stripes; the whole picture is kept."""
    board = Image.fromarray(np.indices((448, 896)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    small = np.asarray(resized(board, Frame(224, 224)))
    assert small.shape == (224, 224, 3)
    assert np.abs(small.astype(int) - 127).max() <= 8


def test_pngs_of_16_bits_and_their_transparent_colour() -> None:
    """RGB and grey, compared in all their bits or nearly."""
    red, black = struct.pack(">3H", 0xFF12, 0, 0), bytes(6)
    assert ends(drawn(16, 2, red * 4 + black * 4)) == [[255, 0, 0], [0, 0, 0]]
    assert ends(drawn(16, 2, red * 4 + black * 4, chunk(b"tRNS", red))) == [[255, 255, 255], [0, 0, 0]]
    assert ends(drawn(16, 0, b"\x12\x34" * 4 + b"\x12\x35" * 4, chunk(b"tRNS", b"\x12\x34"))) == [[255] * 3, [18] * 3]
    half = struct.pack(">HH", 0, 0x8000) * 4 + struct.pack(">HH", 0x4000, 0xFFFF) * 4
    assert ends(drawn(16, 4, half)) == [[127] * 3, [64] * 3]


def test_the_transparent_grey_of_few_bits() -> None:
    """Level 1 of 3, and 7 of 15."""
    assert ends(drawn(2, 0, b"\x55\x00", chunk(b"tRNS", b"\0\1"))) == [[255] * 3, [0] * 3]
    assert ends(drawn(4, 0, b"\x77" * 2 + b"\x11" * 2, chunk(b"tRNS", b"\0\7"))) == [[255] * 3, [17] * 3]


def test_the_first_picture_of_an_mpo_is_decoded() -> None:
    """MPO: a JPEG with others behind it."""
    data = encoded(flat((0, 255, 0)), "MPO", save_all=True, append_images=[flat((255, 0, 0))], quality=95)
    assert shown(data) == pytest.approx([0, 255, 0], abs=3)


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
        ("AVIF", b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"),
        ("TIFF", b"II*\0\x08\0\0\0"),
        ("TIFF", b"MM\0*\0\0\0\x08"),
        ("GIF", b"GIF89a\x10\0"),
        ("BMP", encoded(noise(), "BMP")),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'>"),
        ("SVG", b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='1'>"),
    ],
)
def test_formats_that_are_not_taken_are_named(form: str, data: bytes) -> None:
    """With the accepted formats, whatever the file's name."""
    with pytest.raises(UnsupportedImage, match=f"this is {form}; PNG, JPEG and WebP are accepted: convert it"):
        decode(data + bytes(64), MANY)


def test_no_message_has_an_address() -> None:
    """No message contains the address of an object."""
    for data in (b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff" + bytes(40), b"RIFF....WEBP" + bytes(40)):
        with pytest.raises(UnusableImage) as reported:
            decode(data, MANY)
        assert "0x" not in str(reported.value)
        assert "object" not in str(reported.value)


def test_an_image_is_squashed_or_its_middle_is_taken() -> None:
    """The middle of a wide picture is white."""
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert np.asarray(resized(image, Frame(30, 30), "crop")).min() == 255
    assert np.asarray(resized(image, Frame(30, 30))).min() == 0
