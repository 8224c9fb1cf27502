"""JSON bodies and multipart forms, and hostile variations of their structure and of their bytes."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.conftest import noise, png

PICTURE = png(noise(16, 16))
FIELDS = {
    "model": "vgg_mini",
    "layer": "conv2_2",
    "kernels": [3, 16],
    "methods": ["suppression", "evidence"],
    "alpha": [0.5, 1],
    "beta": 1,
    "iterations": 10,
    "deadline_s": 60,
    "only_remove": True,
    "gamma": 0.5,
}
TEXTS = (
    *("", " ", "0", "-0", "1_0", "٣", "1e3", "1e999", "NaN", "top:4", "top:0", "top:99999", "true", "null", "%s%n"),
    *("\0", "\x1b[31m", "\ud800", "\udfff\ud800", "😀", "ü", "\u202e", "\ufeff", "'", '"', "\\", "\r\n", "a,,c"),
    *("[]", "x" * 65, "x" * 5000, "é" * 70_000, "9" * 400, "9" * 5000),
    *("http://127.0.0.1/", "http://[::1", "http://\u2028"),
)
VALUES: tuple[Any, ...] = (
    *TEXTS,
    *(None, True, False, 0, -1, 1.5, 1e308, -1e308, 10**400, float("nan"), float("inf"), -0.0, [], {}, [[]], [{}]),
    *([0] * 3000, [-1] * 3000, ["x"] * 3000, [None] * 70, {"a": {"b": {"c": []}}}, {f"k{i}": i for i in range(80)}),
)
Body = tuple[bytes, dict[str, str]]  # with its headers


def json_bodies(seed: int) -> Iterator[Body]:
    """An endless sequence, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        fields: Any = {**copy.deepcopy(FIELDS), "images": [{"data": base64.b64encode(PICTURE).decode()}]}
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            fields = _changed(fields, chance)
        data = _written(fields, chance)
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 4))):
            data = chance.choice(MUTATIONS)(data, chance)
        media = chance.choice(["application/json"] * 9 + ["application/json; charset=utf-16", "Application/JSON;"])
        yield data, {"Content-Type": media, **_odd_headers(chance)}


def forms(seed: int) -> Iterator[Body]:
    """The same for multipart forms."""
    chance = random.Random(seed)
    while True:
        boundary = chance.choice([b"b", b"-", b"--", b"x" * 70, b"frontier"] * 4 + [b"x" * 300, b"=_?"])
        body = b"".join(_part(name, value, boundary, chance) for name, value in _parts(chance))
        body += b"--" + boundary + b"--\r\n"
        for _ in range(chance.choice((0, 0, 0, 0, 1, 1, 2))):
            body = chance.choice(MUTATIONS)(body, chance)
        media = f"multipart/form-data; boundary={boundary.decode()}"
        tails = [*[""] * 20, "; charset=utf-8", "; charset=utf-7", "; charset=idna", "; boundary=c"]
        odd = ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="']
        media = chance.choice([*[media + chance.choice(tails)] * 12, *odd])
        yield body, {"Content-Type": media, **_odd_headers(chance)}


def _odd_headers(chance: random.Random) -> dict[str, str]:
    odd: list[dict[str, str]] = [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": ""},
        {"Idempotency-Key": "x" * 300},
        {"Idempotency-Key": chance.choice(("a", "b", "\xe9"))},
        {"Prefer": "wait=0"},
        {"Prefer": "wait=99999999999"},
        {"X-Request-ID": "\xff"},
    ]
    return chance.choice(odd) if chance.random() < 0.1 else {}


def _changed(value: Any, chance: random.Random) -> Any:
    """A value with one place replaced, removed, doubled or extended."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        action = chance.randrange(5)
        if action == 0:
            del value[name]
        elif action == 1:
            value[chance.choice(TEXTS)] = chance.choice(VALUES)
        elif action == 2:
            value[name] = chance.choice(VALUES)
        else:
            value[name] = _changed(value[name], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        action = chance.randrange(3)
        if action == 0:
            value[at] = _changed(value[at], chance)
        elif action == 1:
            value += [copy.deepcopy(value[at])] * chance.choice((1, 20))
        else:
            value.insert(at, chance.choice(VALUES))
        return value
    return copy.deepcopy(chance.choice(VALUES))


def _written(fields: Any, chance: random.Random) -> bytes:
    """Mostly UTF-8, with raw surrogates if there are any; sometimes with a repeated field or nested too deeply."""
    text = json.dumps(fields, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.05:
        text = text.replace("{", '{"layer": "conv1_1", ', 1)
    if chance.random() < 0.03:
        text = text.replace("[", "[" * chance.choice((10, 2000, 90_000)), 1)
    coding = chance.choice(["utf-8"] * 20 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    return text.encode(coding, "surrogatepass")


def _parts(chance: random.Random) -> list[tuple[str, bytes]]:
    given = [(name, json.dumps(value).strip('[]"').replace('"', "").encode()) for name, value in FIELDS.items()]
    given = chance.sample(given, chance.randrange(3, len(given) + 1))
    given += [("model", b"vgg_mini"), ("layer", b"conv2_2"), ("kernels", b"3"), ("methods", b"suppression,evidence")]
    given = list(dict(given).items())
    given += [("image", PICTURE)] * chance.choice((1, 1, 1, 1, 1, 0, 2, 17))
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 5))):
        name = chance.choice([*FIELDS, "image", "images", "image[]", "kernels[]", "colour", *TEXTS])
        given.append((name, chance.choice(TEXTS).encode("utf-8", "surrogatepass")))
    if chance.random() < 0.02:
        given += [(f"f{number}", b"") for number in range(chance.choice((100, 3000)))]
    chance.shuffle(given)
    return given


def _part(name: str, value: bytes, boundary: bytes, chance: random.Random) -> bytes:
    names = ["; filename=a.png", '; filename="a.png"', '; filename=""', "; filename*=UTF-8''%e2%82%ac", "; filename"]
    names += [
        "",
        "; filename*=utf-16''%00",
        "; filename*=x",
        '; filename="\xff"',
        "; filename*0=a",
        ";;;",
        "; FILENAME=a",
    ]
    file = chance.choice(names) if name.startswith("image") or chance.random() < 0.05 else ""
    head = f'Content-Disposition: form-data; name="{name}"{file}'.encode("utf-8", "surrogatepass")
    if chance.random() < 0.03:
        head = chance.choice((b"", b"Content-Disposition: attachment", b"X: " + b"y" * 9000, b"X: y\r\n" * 50 + head))
    kind = chance.choice((b"", b"", b"\r\nContent-Type: image/png", b"\r\nContent-Transfer-Encoding: base64"))
    return b"--" + boundary + b"\r\n" + head + kind + b"\r\n\r\n" + value + b"\r\n"


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _removed(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 2, 4, 64)) :]


def _repeated(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    part = data[start : start + chance.choice((1, 4, 64, 1000))]
    return data[:start] + part * chance.choice((2, 50, 1000)) + data[start:]


def _inserted(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    pieces = (
        b"\0",
        b'"',
        b"\\",
        b"\r\n",
        b"\r\n--b",
        b"\xed\xa0\x80",
        b"\xff",
        b"{",
        b"[",
        b",",
        b'"data":',
        b"--b--\r\n",
    )
    return data[:at] + chance.choice(pieces) * chance.choice((1, 1, 3, 5000)) + data[at:]


PIECES = (b"\0", b'"', b"\\", b"\r\n", b"\r\n--b", b"\xed\xa0\x80", b"\xff", b"{", b"[", b",", b'"data":', b"--b--\r\n")
MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flipped, _cut, _removed, _repeated, _inserted)
