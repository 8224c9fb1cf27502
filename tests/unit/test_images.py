"""Images are decoded as viewers show them, in 8-bit RGB."""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from shared.errors import UnsupportedImage, UnusableImage
from shared.images import Frame, decode, decoded, pixels, resized, verify
from tests.conftest import encoded, noise, png
from tests.unit import profiles

MANY = 10**8
ODD_EXIF = b"\0\x08\0\x02\x01\x12\0\x03" + bytes(40)
DAMAGED_EXIF = "The EXIF data of the image's file was ignored: it is damaged."
DAMAGED_PROFILE = "The colour profile of the image's file was ignored: it is damaged."
DAMAGED = "The metadata of the image's file was ignored: it is damaged."


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, (16, 16), colour)


def shown(data: bytes) -> list[int]:
    """The colour of a pixel in the middle."""
    pixel: list[int] = np.asarray(decode(data, MANY))[8, 8].tolist()
    return pixel


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """Of a PNG."""
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def beside(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks before its pixels."""
    return data[:33] + b"".join(chunks) + data[33:]


def drawn(bits: int, colour: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of 8 × 8 pixels, all rows the same."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)), chunk(b"IEND", b"")
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *chunks, *rest])


def ends(data: bytes) -> list[list[int]]:
    """The first and the last colour of a row."""
    both: list[list[int]] = np.asarray(decode(data, MANY))[0, [0, -1]].tolist()
    return both


def segment(marker: int, body: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def after_start(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments before all others."""
    return data[:2] + b"".join(segments) + data[2:]


def tiff(orientation: int, order: str = ">", kind: int = 3) -> bytes:
    """EXIF's structure with one entry."""
    value = struct.pack(f"{order}{'I' if kind == 4 else 'H'}", orientation).ljust(4, b"\0")
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


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
    """A rotated picture is made upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(noise(40, 20), "JPEG", exif=exif.tobytes()), MANY).size == (20, 40)


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
                assert seen.tobytes() == ImageOps.exif_transpose(turned).tobytes()


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


def test_metadata_of_the_file_is_not_kept_in_the_picture() -> None:
    """A PNG saved from the result is not rotated, converted or flattened a second time."""
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = decode(png(noise(), icc_profile=profiles.display_p3(), exif=exif), MANY)
    again = decode(png(resized(seen, Frame(40, 40))), MANY)
    assert again.tobytes() == resized(seen, Frame(40, 40)).tobytes()
    assert b"iCCP" not in png(resized(seen, Frame(40, 40)))


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
