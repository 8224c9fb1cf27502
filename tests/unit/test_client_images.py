"""Every form of an image that the client takes is the same picture to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from kernelscope.client.pictures import file_of
from shared.images import decode
from tests.conftest import encoded, noise
from tests.unit import profiles


def decoded(image: Any) -> Image.Image:
    """The image that the server decodes."""
    return decode(file_of(image)[1], 10**8)


def files() -> dict[str, bytes]:
    """Image files, as cameras and programs write them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = noise().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    profile = profiles.display_p3()
    return {
        "sideways.jpg": encoded(noise(), "JPEG", exif=exif),
        "sideways.png": encoded(noise(), "PNG", exif=exif),
        "phone.jpg": encoded(noise(), "JPEG", exif=exif, icc_profile=profile),
        "cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
        "inks.jpg": encoded(noise().convert("CMYK"), "JPEG", icc_profile=profiles.cmyk({(1, 0, 0, 0): (60, 60, 0)})),
        "grey.jpg": encoded(noise().convert("L"), "JPEG", icc_profile=profiles.grey(1.0)),
        "deep.png": encoded(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16), "PNG"),
        "clear.png": encoded(clear, "PNG", icc_profile=profile),
        "palette.png": encoded(noise().quantize(16), "PNG", transparency=3),
        "clear.webp": encoded(clear, "WEBP", exif=exif.tobytes(), lossless=True),
    }


def test_what_is_not_an_image_is_refused_before_it_is_sent() -> None:
    """The message says what can be used."""
    with pytest.raises(TypeError, match=r"int is not an image; .* an array \(height, width\)"):
        file_of(17)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        file_of("missing.jpg")


@pytest.mark.parametrize("name", files())
def test_a_pillow_image_is_the_picture_of_its_file(tmp_path: Path, name: str) -> None:
    """Whichever form is used; an image that was opened keeps its file's name and is not changed."""
    path = tmp_path / name
    path.write_bytes(files()[name])
    with Image.open(path) as image:
        before = (image.copy().tobytes(), dict(image.info))
        assert file_of(image)[0] == name
        assert decoded(image).tobytes() == decoded(path).tobytes() == decoded(path.read_bytes()).tobytes()
        assert (image.tobytes(), dict(image.info)) == before
    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        assert decoded(turned).tobytes() == decoded(path).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"])
def test_colours_in_any_mode_are_the_same_picture(mode: str) -> None:
    """To within the mode's own rounding."""
    picture = noise()
    seen = np.asarray(decoded(picture.convert(mode)), dtype=int)
    assert np.abs(seen - np.asarray(picture)).mean() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "PA", "I", "F", "I;16"])
def test_grey_in_any_mode_is_the_same_picture(mode: str) -> None:
    """Also in modes of more than 8 bits, of which Pillow has two scales each."""
    grey = noise().convert("L")
    picture = grey.convert("LA").convert(mode) if mode in {"La", "PA"} else grey.convert(mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    expected = grey.convert("1") if mode == "1" else grey
    assert decoded(picture).tobytes() == expected.convert("RGB").tobytes()
    for scaled in (np.asarray(grey, np.int32) * 257, np.asarray(grey, np.float32) / 255):
        assert decoded(Image.fromarray(scaled)).tobytes() == grey.convert("RGB").tobytes()
    with pytest.raises(ValueError, match=r"mode F has values from 0 to 1 or to 255; these go from -1 to"):
        file_of(Image.fromarray(np.asarray(grey, np.float32) - 1 - np.asarray(grey, np.float32).min()))


def test_arrays_are_images() -> None:
    """Grey, colour and alpha, of uint8 or of floats; also if they are not contiguous."""
    pixels = np.asarray(noise())
    for array in (
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        np.dstack([pixels, np.full_like(pixels, 255)[..., :1]]),
    ):
        assert np.array_equal(np.asarray(decoded(array)), pixels)
    for grey in (pixels[..., 0], pixels[..., :1], pixels[..., 0] / 255):
        assert np.array_equal(np.asarray(decoded(grey)), np.repeat(pixels[..., :1], 3, axis=2))
    assert np.array_equal(np.asarray(decoded(pixels[::2, ::-1])), pixels[::2, ::-1])


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.zeros((3, 20, 30), np.uint8),
            TypeError,
            r"\(3, 20, 30\) of uint8 is not an image.*use array.transpose\(1, 2, 0\)",
        ),
        (np.zeros((2, 20, 30, 3), np.uint8), TypeError, r"\(2, 20, 30, 3\).*\(height, width, channels\)"),
        (np.zeros((20, 30, 2), np.uint8), TypeError, "1, 3 or 4 channels"),
        (np.zeros((20, 30, 3), np.int64), TypeError, "of int64 is not an image; .* of uint8 or of floats in 0-1"),
        (np.full((20, 30), 2.5), ValueError, "between 0 and 1; this array's are between 2.5 and 2.5"),
        (np.full((20, 30), np.nan), ValueError, "nan"),
        (np.zeros(5), TypeError, r"\(5,\)"),
        (np.zeros((0, 5)), ValueError, "no pixels"),
    ],
)
def test_other_arrays_are_refused(array: Any, error: type[Exception], message: str) -> None:
    """Before anything is sent, with the reason."""
    with pytest.raises(error, match=message):
        file_of(array)


def test_ignored_metadata_of_a_pillow_image_is_a_warning() -> None:
    """The same that the server notes in a result."""
    picture = noise()
    picture.info["exif"] = b"garbage"
    with pytest.warns(UserWarning, match="EXIF data of the image's file was ignored"):
        assert decoded(picture).tobytes() == noise().tobytes()
