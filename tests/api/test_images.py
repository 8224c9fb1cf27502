"""The images of a request: formats, sizes, names."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from httpx import Client
from PIL import Image

from tests.api.test_explain import MINI, post, post_json, refused
from tests.conftest import encoded, noise, png
from tests.unit import profiles


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header announces this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(3 * width + 1) * 10)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_files_that_are_not_images(client: Client) -> None:
    """Text, an empty file, another format: 415, with the accepted formats."""
    gif = encoded(noise(), "GIF")
    for data in (b"not an image", b"", gif):
        refused(post(client, data), 415, "unsupported-image", "PNG, JPEG and WebP")
    refused(post(client, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), 415, "unsupported-image", "this is HEIC", "convert it")


def test_the_same_image_under_two_names_is_two_images(client: Client) -> None:
    """Names are stored with the digests; an image without a name has none."""
    digest = hashlib.sha256(png(noise())).hexdigest()
    data = {"data": base64.b64encode(png(noise())).decode()}
    assert post_json(client, images=[data]).json()["request"]["names"] == []
    job = post_json(client, images=[{**data, "name": "a.png"}, {"sha256": digest, "name": "b.png"}, data]).json()
    assert job["request"]["images"] == [digest] * 3
    assert job["request"]["names"] == ["a.png", "b.png", None]
    assert job["progress"]["total"] == 6


@pytest.mark.parametrize("name", ["", "a" * 129, "a\nb", "a\u0000", "\u0085", 7])
def test_invalid_names(client: Client, name: Any) -> None:
    """Too long, too short, or with invisible characters."""
    image = {"data": base64.b64encode(png(noise())).decode(), "name": name}
    refused(post_json(client, images=[image]), 422, "invalid-request", "images.0.name")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("cat.jpg", "cat.jpg"), ("a/../b\\cat.jpg", "cat.jpg"), ("é.png", "é.png"), ("a" * 200, "a" * 128), ("/", None)],
)
def test_a_form_s_file_names_are_stored(client: Client, given: str, kept: str | None) -> None:
    """Without folders, and cut to the length of a name."""
    job = client.post("/explain", files={"image": (given, png(noise()))}, data=MINI).json()
    assert job["request"]["names"] == ([kept] if kept else [])


@pytest.mark.parametrize("profile", [b"no profile", profiles.display_p3(), profiles.cmyk({})])
def test_images_with_unusual_metadata_are_accepted(client: Client, profile: bytes) -> None:
    """Metadata is applied or ignored."""
    for form in ("PNG", "JPEG", "WEBP"):
        assert post(client, encoded(noise(), form, icc_profile=profile, exif=b"Exif\0\0odd")).status_code == 202


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_images(client: Client, form: str) -> None:
    """Half a file is refused immediately, not later by a worker."""
    data = encoded(noise(200, 200), form)
    for length in (20, len(data) // 2):
        refused(post(client, data[:length]), 422, "unusable-image", form, "truncated or damaged")


def test_images_of_an_unusable_size(client: Client) -> None:
    """One pixel is too small; 40,000 × 40,000 is refused by its header, before it is decoded."""
    refused(post(client, png(noise(1, 1))), 422, "unusable-image", "1×1", "at least 8")
    refused(post(client, bomb(40_000, 40_000)), 422, "unusable-image", "40000×40000", "50 megapixels")


def rotated() -> bytes:
    """A JPEG whose EXIF orientation is rotated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif.tobytes())


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise().convert("CMYK"), "JPEG"),
        png(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13)),
        png(noise().convert("P"), transparency=0),
        png(noise().convert("LA")),
        png(noise().convert("1")),
        png(noise().convert("RGBA")),
        encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)], duration=100),
        png(noise(), save_all=True, append_images=[noise(seed=1)]),
        rotated(),
    ],
    ids=["cmyk", "16-bit", "palette+alpha", "grey+alpha", "1-bit", "rgba", "animated-webp", "apng", "exif-rotated"],
)
def test_unusual_images_are_accepted(client: Client, data: bytes) -> None:
    """They are converted."""
    assert post(client, data).status_code == 202
