"""The metadata of images: orientations are applied, what is damaged is ignored and noted."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
from PIL import Image, ImageOps

from shared.errors import UnusableImage
from shared.images import Frame, decode, decoded, pixels, resized, verify
from tests.conftest import encoded, noise, png
from tests.unit import profiles
from tests.unit.image_files import (
    DAMAGED,
    DAMAGED_EXIF,
    DAMAGED_PROFILE,
    MANY,
    ODD_EXIF,
    after_start,
    beside,
    chunk,
    segment,
    tiff,
)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_all_orientations_from_any_container(form: str, subtests: pytest.Subtests) -> None:
    """As by Pillow; invalid values are ignored."""
    plain = decode(encoded(noise(40, 20), form), MANY)
    for number in range(10):
        exif = Image.Exif()
        exif[0x0112] = number if 1 <= number <= 8 else 1
        turned = plain.copy()
        turned.info["exif"] = exif.tobytes()
        for order, kind in ((">", 3), ("<", 3), (">", 4), ("<", 4)):
            with subtests.test(number=number, order=order, kind=kind):
                seen = decode(encoded(noise(40, 20), form, exif=b"Exif\0\0" + tiff(number, order, kind)), MANY)
                assert seen.size == ((20, 40) if 5 <= number <= 8 else (40, 20))
                assert seen.tobytes() == ImageOps.exif_transpose(turned).tobytes()


@pytest.mark.parametrize(
    ("chunks", "notes"),
    [
        ([chunk(b"eXIf", ODD_EXIF)], [DAMAGED_EXIF]),
        ([chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2_000_000)))], []),
        ([chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(bytes(2_000_000)))], []),
        ([chunk(b"tEXt", b"Comment\0hello", crc=1)], [DAMAGED]),
        ([chunk(b"pHYs", b"short")], []),
        ([chunk(b"acTL", b"")], []),
        ([chunk(b"iCCP", b"name\0\0no zlib stream")], [DAMAGED_PROFILE]),
        ([chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))], [DAMAGED_PROFILE]),
        (
            [chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000)))],
            ["The colour profile of the image's file was ignored: it is over 1 MB."],
        ),
        ([chunk(b"eXIf", ODD_EXIF, crc=1), chunk(b"iCCP", b"", crc=1)], [DAMAGED_EXIF, DAMAGED_PROFILE]),
    ],
)
def test_invalid_metadata_of_a_png_is_ignored(chunks: Sequence[bytes], notes: list[str]) -> None:
    """The pixels are decoded; there are notes on ignored metadata that could have changed them."""
    plain = png(noise())
    seen = decoded(beside(plain, *chunks), MANY)
    assert seen.notes == notes
    assert seen.image.tobytes() == decode(plain, MANY).tobytes()


@pytest.mark.parametrize(
    ("odd", "notes"),
    [
        (segment(0xE1, b"Exif\0\0garbage"), [DAMAGED_EXIF]),
        (segment(0xE2, b"MPF\0MM\0*\0\0\0\x08" + bytes(6)), []),
        (segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x02xx"), []),
        (segment(0xE0, b"JFIF\0"), []),
        (segment(0xEE, b"Adobe"), []),
        (
            segment(0xE2, b"ICC_PROFILE\0\1\2half"),
            ["The colour profile of the image's file was ignored: it is incomplete."],
        ),
    ],
)
def test_invalid_metadata_of_a_jpeg_is_ignored(odd: bytes, notes: list[str]) -> None:
    """As of a PNG."""
    plain = encoded(noise(), "JPEG")
    seen = decoded(after_start(plain, odd), MANY)
    assert seen.notes == notes
    assert seen.image.tobytes() == decode(plain, MANY).tobytes()


def test_odd_exif_of_a_webp_is_ignored() -> None:
    """As of a PNG."""
    seen = decoded(encoded(noise(), "WEBP", exif=b"garbage-garbage!"), MANY)
    assert seen.notes == [DAMAGED_EXIF]
    assert seen.image.tobytes() == decode(encoded(noise(), "WEBP"), MANY).tobytes()


def test_truncated_pixels_are_rejected_despite_invalid_metadata() -> None:
    """They are rejected, also if an image is only verified."""
    data = beside(png(noise()), chunk(b"tEXt", b"a\0b", crc=1), chunk(b"eXIf", ODD_EXIF))
    for take in (decode, verify):
        with pytest.raises(UnusableImage, match="truncated or damaged"):
            take(data[: len(data) * 2 // 3], MANY)


def test_the_size_is_known_without_decoding() -> None:
    """Whatever the metadata."""
    assert pixels(beside(png(noise(40, 20)), chunk(b"tEXt", b"a\0b", crc=1)), MANY) == 800


def test_metadata_of_the_file_is_not_kept_in_the_picture() -> None:
    """A PNG saved from the result is not rotated, converted or flattened a second time."""
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = decode(png(noise(), icc_profile=profiles.display_p3(), exif=exif), MANY)
    again = decode(png(resized(seen, Frame(40, 40))), MANY)
    assert again.tobytes() == resized(seen, Frame(40, 40)).tobytes()
    assert b"iCCP" not in png(resized(seen, Frame(40, 40)))
