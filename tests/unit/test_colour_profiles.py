"""Colours are brought to sRGB by the image's profile."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from shared.images import decode, decoded
from tests.conftest import encoded, noise, png
from tests.unit import profiles
from tests.unit.image_files import MANY, after_start, flat, segment, shown


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_phones_colours_are_brought_to_srgb(form: str) -> None:
    """A Display P3 photograph, by the formulas."""
    options = {"quality": 95} if form == "JPEG" else {"lossless": True}
    plain = np.asarray(decode(encoded(noise(), form, **options), MANY))
    seen = decoded(encoded(noise(), form, icc_profile=profiles.display_p3(), **options), MANY)
    assert seen.notes == []
    assert np.abs(np.asarray(seen.image) - profiles.to_srgb(plain)).max() < 1
    assert np.abs(np.asarray(seen.image).astype(int) - plain).max() > 20


def test_a_profile_in_many_pieces_is_put_together() -> None:
    """As a JPEG has it where it is over 64 kB, in any order."""
    data, profile = encoded(noise(), "JPEG"), profiles.display_p3()
    pieces = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes((1 + at, 4)) + profile[100 * at : 100 * at + 100]) for at in (0, 1, 2)
    ]
    pieces.insert(0, segment(0xE2, b"ICC_PROFILE\0\4\4" + profile[300:]))
    expected = decode(encoded(noise(), "JPEG", icc_profile=profile), MANY)
    assert decode(after_start(data, *pieces), MANY).tobytes() == expected.tobytes()


def test_srgb_by_its_name_changes_nothing() -> None:
    """Not even by rounding; also for grey images, which many programs save with a profile for RGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for picture in (noise(), noise().convert("L")):
        seen = decoded(png(picture, icc_profile=profile), MANY)
        assert seen.notes == []
        assert seen.image.tobytes() == picture.convert("RGB").tobytes()


def test_profiles_of_grey_and_of_inks_are_applied() -> None:
    """Half of the light is 188 of 255; cyan ink that is red by its profile is red."""
    assert shown(png(flat((128,), "L"), icc_profile=profiles.grey(1.0))) == [188] * 3
    assert shown(png(flat((128, 255), "LA"), icc_profile=profiles.grey(1.0))) == [188] * 3
    deep = Image.fromarray(np.full((16, 16), 0x8000, dtype=np.uint16))
    assert shown(png(deep, icc_profile=profiles.grey(1.0))) == [188] * 3
    inks = profiles.cmyk({(1, 0, 0, 0): (54.3, 80.8, 69.9)})
    cyan = encoded(flat((255, 0, 0, 0), "CMYK"), "JPEG", quality=95, icc_profile=inks)
    assert shown(cyan) == pytest.approx([255, 0, 0], abs=12)
    paper = encoded(flat((0, 0, 0, 0), "CMYK"), "JPEG", quality=95, icc_profile=inks)
    assert shown(paper) == pytest.approx([255, 255, 255], abs=2)


def test_a_profile_reaches_palettes_and_what_is_half_transparent() -> None:
    """Colours first, then white behind them."""
    colour = np.array([[[200, 90, 40]]], np.uint8)
    own = profiles.to_srgb(colour)[0, 0]
    picture = flat((200, 90, 40))
    profile = profiles.display_p3()
    assert shown(png(picture.quantize(2), icc_profile=profile)) == pytest.approx(own, abs=1)
    picture.putalpha(128)
    assert shown(png(picture, icc_profile=profile)) == pytest.approx((128 * own + 127 * 255) / 255, abs=1.5)


@pytest.mark.parametrize(
    ("picture", "profile", "why"),
    [
        (noise(), profiles.grey(1.0), "is for GRAY and the image is RGB"),
        (noise().convert("L"), profiles.cmyk({}), "is for CMYK and the image is L"),
        (noise(), profiles.display_p3()[:200], "is damaged"),
        (noise(), profiles.display_p3() + bytes(1_000_000), "is over 1 MB"),
        (noise(), profiles.profile("RGB ", {}), "is damaged"),
        (noise(), profiles.profile("X\0\1 ", {}), "is for other colours and the image is RGB"),
    ],
)
def test_a_profile_that_does_not_fit_is_ignored(picture: Image.Image, profile: bytes, why: str) -> None:
    """There is a note."""
    seen = decoded(png(picture, icc_profile=profile), MANY)
    assert seen.notes == [f"The colour profile of the image's file was ignored: it {why}."]
    assert seen.image.tobytes() == picture.convert("RGB").tobytes()


def test_a_profile_with_many_elements_is_ignored() -> None:
    """A profile of a megabyte can have 100,000 elements for each colour: two minutes of work."""
    data = png(noise(), icc_profile=profiles.endless())
    begin = time.monotonic()
    assert "may take very long" in decoded(data, MANY).notes[0]
    assert time.monotonic() - begin < 30
