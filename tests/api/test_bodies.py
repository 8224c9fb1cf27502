"""Invalid contents of JSON and form bodies: a short error, at little cost, never a 500."""

from __future__ import annotations

import base64
import gzip
import json
import time
from typing import Any

import pytest
from httpx import Client, Response

from tests.api.test_explain import post_json, refused
from tests.api.test_forms import form
from tests.conftest import noise, png

JSON = {"Content-Type": "application/json"}
MOST_ANSWER = 16_000  # bytes
PICTURE = base64.b64encode(png(noise())).decode()
WANTED = {"images": [{"data": PICTURE}], "model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}


def send(client: Client, body: str | bytes, path: str = "/explain") -> Response:
    """Send a raw body."""
    return client.post(path, content=body, headers=JSON)


def bombs(size: int) -> dict[str, dict[str, Any]]:
    """Requests of about this many bytes with as many errors as possible."""
    return {
        "alpha": {"alpha": [-1] * (size // 4)},
        "methods": {"methods": ["x"] * (size // 5)},
        "kernels": {"kernels": [1] * (size // 3) + [-1]},
        "unknown kernels": {"kernels": [10**9] * (size // 12)},
        "unknown fields": {f"f{number}": 1 for number in range(size // 13)},
        "unknown fields of images": {"images": [{f"f{number}": 1 for number in range(size // 13)}]},
        "images": {"images": [{}] * (size // 4)},
        "objects": {"alpha": [{}] * (size // 4)},
        "layer": {"layer": "x" * size},
        "model": {"model": "x" * size},
        "kernel": {"kernels": "x" * size},
        "webhook": {"webhook_url": "http://" + "x" * size},
        "digest": {"images": [{"sha256": "x" * size}]},
        "number": {"iterations": "x" * size},
        "field": {"x" * size: 1},
    }


@pytest.mark.parametrize("size", [150_000, 2_000_000])
@pytest.mark.parametrize("kind", list(bombs(0)))
def test_the_error_of_a_very_wrong_body_is_short(client: Client, kind: str, size: int) -> None:
    """At most 16 kB, and soon. More than 200 kB besides the images is too large."""
    body = json.dumps({**WANTED, **bombs(size)[kind]})
    begin = time.monotonic()
    answer = send(client, body)
    assert time.monotonic() - begin < 5
    assert len(answer.content) <= MOST_ANSWER
    if size > 200_000:
        refused(answer, 413, "body-too-large", "200 kB", "besides the images' data")
    else:
        assert answer.status_code == 422, answer.text


def test_the_error_of_a_very_wrong_form_is_short(client: Client) -> None:
    """Two thousand unknown fields, of up to 64 kB."""
    fields = {f"field{number}": "x" * 1000 for number in range(2000)}
    answer = form(client, kernels="3", **fields)
    problem = refused(answer, 422, "invalid-request", "no such field", "(and 1997 more)")
    assert len(problem["errors"]) == 20
    assert len(answer.content) <= MOST_ANSWER


def test_of_many_errors_twenty_are_listed(client: Client) -> None:
    """With the number of the others."""
    problem = refused(post_json(client, alpha=[-1] * 60), 422, "invalid-request", "alpha.0", "(and 57 more)")
    assert len(problem["errors"]) == 20


def test_of_many_unknown_kernels_five_are_listed(client: Client) -> None:
    """With the number of the others."""
    answer = post_json(client, kernels=list(range(100, 2000)))
    detail = refused(answer, 422, "unknown-kernel", "100, 101, 102, 103, 104 (and 1895 more)")["detail"]
    assert len(detail) < 200


@pytest.mark.parametrize("name", ["model", "layer"])
def test_names_have_at_most_64_characters(client: Client, name: str) -> None:
    """Longer ones are refused."""
    refused(post_json(client, **{name: "x" * 65}), 422, "invalid-request", f"{name}: String should have at most 64")
    refused(
        form(client, **{"kernels": "3", name: "x" * 65}),
        422,
        "invalid-request",
        f"{name}: String should have at most 64",
    )


def test_large_images_do_not_count_for_the_bound_on_json(client: Client) -> None:
    """Several of a megabyte in little JSON, also with escaped slashes, as PHP writes them."""
    large = base64.b64encode(png(noise(700, 500))).decode()
    assert len(large) > 1_000_000
    body = json.dumps({**WANTED, "images": [{"data": large}, {"data": PICTURE}]})
    for text in (body, body.replace("/", "\\/"), "\ufeff" + body, json.dumps(json.loads(body), indent=4)):
        answer = send(client, text)
        assert answer.status_code == 202, answer.text
        assert len(answer.json()["request"]["images"]) == 2


@pytest.mark.parametrize("name", ["data2", '\\"data', "sha256", "layer"])
def test_only_images_are_large(client: Client, name: str) -> None:
    """A long string of another name counts for the bound."""
    body = f'{{"images": [{{"{name}": "{"A" * 300_000}"}}]}}'
    refused(send(client, body), 413, "body-too-large", "200 kB")


def test_data_that_is_not_base64(client: Client) -> None:
    """Long and short: the error says that it is invalid or missing."""
    for text in ("%" * 10, "%" * 10_000, "A" * 9_999, "é" * 9_999, '\\"' * 9_999):
        body = f'{{"images": [{{"data": "{text}"}}], "layer": "conv2_2", "kernels": 3}}'
        refused(send(client, body.encode()), 422, "invalid-request", "images.0.data", "base64")
    refused(send(client, '{"images": [{"data": "' + "A" * 300_000), 400, "malformed-body", "not JSON")
    body = '{"images": [{"sha256": "x"}], "layer": "a", "kernels": 3, "data": "' + "A" * 300_000 + '"}'
    refused(send(client, body), 422, "invalid-request", "data: no such field")


@pytest.mark.parametrize(
    "body",
    [
        b'{"layer": "\xed\xa0\x80"}',
        b'{"\xed\xa0\x80": 1}',
        b'{"layer": "\xff"}',
        b'{"layer": "\xc0\x80"}',
        '{"layer": "conv2_2"}'.encode("utf-16"),
        '{"layer": "conv2_2"}'.encode("utf-16-le"),
        '{"layer": "\ud800"}'.encode("utf-16-le", "surrogatepass"),
        '{"layer": "conv2_2"}'.encode("utf-32"),
        b'{"layer": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"layer": "\\ud83d"}',
    ],
)
@pytest.mark.parametrize("path", ["/explain", "/activations"])
def test_text_that_is_not_utf_8_is_malformed(client: Client, path: str, body: bytes) -> None:
    """Raw surrogates, overlong forms, other encodings, half a pair of escapes: 400, never 500."""
    refused(send(client, body, path), 400, "malformed-body")


def test_characters_beyond_the_basic_plane_are_characters(client: Client) -> None:
    """Raw and as a pair of escapes; the error repeats them."""
    for text in ("😀", "\\ud83d\\ude00"):
        body = f'{{"images": [{{"data": "{PICTURE}"}}], "kernels": 3, "layer": "{text}"}}'
        refused(send(client, body.encode()), 422, "unknown-layer", "layer 😀 does not exist")


@pytest.mark.parametrize(
    ("disposition", "value", "charset"),
    [
        (b'name="layer"', b"\xff\xfe", ""),
        (b'name="\xed\xa0\x80"', b"x", ""),
        (b'name="layer"', b"\\ud800", "; charset=unicode_escape"),
        (b'name="layer"', b"x", "; charset=utf-16"),
        (b'name="layer"', b"x", "; charset=zlib"),
        (b"", b"x", ""),
    ],
)
def test_a_form_that_is_not_utf_8_is_malformed(client: Client, disposition: bytes, value: bytes, charset: str) -> None:
    """Names and fields; other character sets are not detected."""
    body = b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n--b--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary=b{charset}"}
    refused(client.post("/explain", content=body, headers=headers), 400, "malformed-body", "cannot be read")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"layer": "conv1_1", "layer": "conv2_2"}', "layer"),
        ('{"images": [{"sha256": "a", "sha256": "b"}]}', "sha256"),
        (f'{{"images": [{{"data": "{"A" * 9000}", "data": "{"B" * 9000}"}}]}}', "data"),
    ],
)
def test_a_repeated_field_is_refused_by_name(client: Client, body: str, name: str) -> None:
    """At any depth."""
    refused(send(client, body), 422, "invalid-request", f"{name}: given 2 times; give it once")


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_compressed_bodies_are_refused(client: Client, coding: str) -> None:
    """Before they are read, with the accepted encoding."""
    body = gzip.compress(json.dumps(WANTED).encode())
    answer = client.post("/explain", content=body, headers={**JSON, "Content-Encoding": coding})
    refused(answer, 415, "unsupported-content-type", f"Content-Encoding is {coding.lower()}", "uncompressed")
    assert answer.headers["accept-encoding"] == "identity"


def test_the_content_encoding_identity_is_accepted(client: Client) -> None:
    """It means that the body is not compressed."""
    answer = client.post("/explain", json=WANTED, headers={"Content-Encoding": "identity"})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("folder", ["/", "/models/", "/jobs/", "/web/", "/problems/"])
def test_long_paths_are_not_repeated(client: Client, folder: str) -> None:
    """The response is 404, not 500."""
    answer = client.get(folder + "x" * 9000)
    assert answer.status_code == 404
    assert len(answer.content) < 2000


def test_very_many_quotes_cost_little(client: Client) -> None:
    """Ten megabytes of empty strings, escaped quotes or backslashes."""
    for unit in ('"",', '\\"', "\\", '"data":"",', "[],"):
        begin = time.monotonic()
        answer = send(client, '{"images": ["' + unit * (10_000_000 // len(unit)))
        assert time.monotonic() - begin < 10
        assert answer.status_code == 413, unit


def test_the_bound_is_exact(client: Client) -> None:
    """200,000 bytes besides an image are accepted, one more is refused, wherever they are."""
    start, end = '{"images": [{"data": "', '"}], "model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}'
    for size, status in ((200_000, 202), (200_001, 413)):
        pad = " " * (size - len(start) - len(end))
        for body in (pad + start + PICTURE + end, start + PICTURE + end + pad):
            assert send(client, body).status_code == status
