"""ICC profiles built by hand, and their expected results in float64."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WHITE = (0.9642, 1.0, 0.8249)  # D50
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of sRGB and of Display P3


def display_p3() -> bytes:
    """A phone camera's profile."""
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(CURVE)
    columns = {f"{name}XYZ": _xyz(column) for name, column in zip("rgb", DISPLAY_P3.T, strict=True)}
    return profile("RGB ", {**columns, **{f"{name}TRC": curve for name in "rgb"}})


def grey(gamma: float) -> bytes:
    """The profile of a grey image."""
    return profile("GRAY", {"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)})


def cmyk(colours: Mapping[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A CMYK profile with these Lab colours where each ink is full or missing, else paper white."""
    ramp = bytes(range(256))
    nodes = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = b"".join(_lab(colours.get(node, (100.0, 0.0, 0.0))) for node in nodes)
    matrix = _fixed((1, 0, 0, 0, 1, 0, 0, 0, 1))
    body = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + table + ramp * 3
    return profile("CMYK", {"A2B0": body}, kind="prtr", between="Lab ")


def endless() -> bytes:
    """A profile of 120,000 identical stages."""
    count, curves = 120_000, b"matf" + bytes(4) + struct.pack(">HH12f", 3, 3, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0)
    where = struct.pack(">II", 16 + 8 * count, len(curves)) * count
    return profile("RGB ", {"D2B0": b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, count) + where + curves})


def profile(space: str, tags: Mapping[str, bytes], kind: str = "mntr", between: str = "XYZ ") -> bytes:
    """The file: a header, a table of the tags, the tags."""
    tags = {"wtpt": _xyz(WHITE), **tags}
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", at + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), b"", 0x04200000, *_words(kind, space, between), b"", b"acsp")
    return head.ljust(68, b"\0") + _fixed(WHITE) + bytes(48) + table + body


def to_srgb(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Display P3 (…, 3) in 8 bits to sRGB on the same scale."""
    x = pixels / 255.0
    linear = np.where(x <= CURVE[4], x * CURVE[3], (x * CURVE[1] + CURVE[2]) ** CURVE[0])
    light = np.clip(linear @ DISPLAY_P3.T @ np.linalg.inv(SRGB).T, 0, 1)
    shown: NDArray[np.float64] = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return shown


def _words(*words: str) -> list[bytes]:
    return [word.encode() for word in words]


def _fixed(numbers: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)


def _xyz(numbers: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(numbers)


def _lab(colour: tuple[float, float, float]) -> bytes:
    light, a, b = colour
    return bytes((round(light * 2.55), round(a + 128), round(b + 128)))
