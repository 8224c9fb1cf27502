"""Bodies of the right kind with the wrong things in them: refused in few words, at little cost, and never a 500."""

from __future__ import annotations

import base64
import gzip
import json
import time
from typing import Any

import pytest
from httpx import Client, Response

from tests.api.test_explain import MINI, form, post, post_json, refused
from tests.conftest import noise, png

JSON = {"Content-Type": "application/json"}
MOST_ANSWER = 16_000  # bytes
PICTURE = base64.b64encode(png(noise())).decode()
WANTED = {"images": [{"data": PICTURE}], "model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}


def send(client: Client, body: str | bytes, path: str = "/explain") -> Response:
    """A body as it is."""
    return client.post(path, content=body, headers=JSON)


def bombs(size: int) -> dict[str, dict[str, Any]]:
    """Requests of about this many bytes that are wrong in as many places as fit."""
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
def test_a_body_that_is_wrong_everywhere_has_a_short_answer(client: Client, kind: str, size: int) -> None:
    """16 kB at most, soon, whatever was sent; over 200 kB of anything but pictures is too large."""
    body = json.dumps({**WANTED, **bombs(size)[kind]})
    begin = time.monotonic()
    answer = send(client, body)
    assert time.monotonic() - begin < 5
    assert len(answer.content) <= MOST_ANSWER
    if size > 200_000:
        refused(answer, 413, "body-too-large", "200 kB", "beside the images' data")
    else:
        assert answer.status_code == 422, answer.text


def test_a_form_that_is_wrong_everywhere_has_a_short_answer(client: Client) -> None:
    """Two thousand fields of unknown names, 64 kB each the largest."""
    fields = {f"field{number}": "x" * 1000 for number in range(2000)}
    answer = form(client, kernels="3", **fields)
    problem = refused(answer, 422, "invalid-request", "no such field", "(and 1997 more)")
    assert len(problem["errors"]) == 20
    assert len(answer.content) <= MOST_ANSWER


def test_of_many_errors_twenty_are_told(client: Client) -> None:
    """With how many more there are."""
    problem = refused(post_json(client, alpha=[-1] * 60), 422, "invalid-request", "alpha.0", "(and 57 more)")
    assert len(problem["errors"]) == 20


def test_of_many_unknown_kernels_five_are_told(client: Client) -> None:
    """The rest is counted."""
    answer = post_json(client, kernels=list(range(100, 2000)))
    detail = refused(answer, 422, "unknown-kernel", "100, 101, 102, 103, 104 (and 1895 more)")["detail"]
    assert len(detail) < 200


@pytest.mark.parametrize("name", ["model", "layer"])
def test_names_have_at_most_64_characters(client: Client, name: str) -> None:
    """Longer ones are not looked for."""
    refused(post_json(client, **{name: "x" * 65}), 422, "invalid-request", f"{name}: String should have at most 64")
    refused(
        form(client, **{"kernels": "3", name: "x" * 65}),
        422,
        "invalid-request",
        f"{name}: String should have at most 64",
    )


def test_large_images_are_beside_the_bound(client: Client) -> None:
    """Some of a megabyte, with the JSON around them small; escaped slashes, as PHP writes them, too."""
    large = base64.b64encode(png(noise(700, 500))).decode()
    assert len(large) > 1_000_000
    body = json.dumps({**WANTED, "images": [{"data": large}, {"data": PICTURE}]})
    for text in (body, body.replace("/", "\\/"), "\ufeff" + body, json.dumps(json.loads(body), indent=4)):
        answer = send(client, text)
        assert answer.status_code == 202, answer.text
        assert len(answer.json()["request"]["images"]) == 2


@pytest.mark.parametrize("name", ["data2", '\\"data', "sha256", "layer"])
def test_only_images_are_large(client: Client, name: str) -> None:
    """A long string of another name counts as what it is."""
    body = f'{{"images": [{{"{name}": "{"A" * 300_000}"}}]}}'
    refused(send(client, body), 413, "body-too-large", "200 kB")


def test_data_that_is_no_base64(client: Client) -> None:
    """Long or short; what is left of it is told as missing, not as something else."""
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
def test_text_that_is_no_utf_8_is_malformed(client: Client, path: str, body: bytes) -> None:
    """A raw surrogate, overlong forms, other encodings, half a pair of escapes: 400, and none is a 500."""
    refused(send(client, body, path), 400, "malformed-body")


def test_characters_beyond_the_basic_plane_are_characters(client: Client) -> None:
    """Raw and as a pair of escapes, said back as they came."""
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
def test_a_form_that_is_no_utf_8_is_malformed(client: Client, disposition: bytes, value: bytes, charset: str) -> None:
    """Its names and fields; other character sets are not guessed at."""
    body = b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n--b--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary=b{charset}"}
    refused(client.post("/explain", content=body, headers=headers), 400, "malformed-body", "cannot be read")


def test_a_form_that_is_cut_off_is_malformed(client: Client) -> None:
    """Rather than a job on half of a picture, or without a field."""
    whole = client.build_request("POST", "/explain", files={"image": ("x", png(noise()))}, data=MINI)
    body = whole.read()
    headers = {"Content-Type": whole.headers["content-type"]}
    for end in (0, 10, 300, len(body) // 2, len(body) - 10):
        refused(client.post("/explain", content=body[:end], headers=headers), 400, "malformed-body", "cannot be read")


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"layer": "conv1_1", "layer": "conv2_2"}', "layer"),
        ('{"images": [{"sha256": "a", "sha256": "b"}]}', "sha256"),
        (f'{{"images": [{{"data": "{"A" * 9000}", "data": "{"B" * 9000}"}}]}}', "data"),
    ],
)
def test_a_field_that_is_given_twice_is_refused_by_name(client: Client, body: str, name: str) -> None:
    """At any depth; which of the two was meant nobody knows."""
    refused(send(client, body), 422, "invalid-request", f"{name}: given 2 times; give it once")


def test_empty_fields_of_a_form_are_not_given(client: Client) -> None:
    """As pages send what nobody has filled in: the optional have their defaults, the others are missing."""
    optional = ("alpha", "beta", "methods", "iterations", "target_ssim", "deadline_s", "webhook_url", "solver", "model")
    answer = client.post(
        "/explain",
        files={"image": ("x", png(noise()))},
        data={"layer": "conv2_2", "kernels": ["", "3"], **dict.fromkeys(optional, "")},
    )
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert (request["alpha"], request["iterations"], request["model"]) == ([1.0], None, "vgg16")
    assert request["kernels"] == [3]
    refused(post(client, kernels=" ", layer=""), 422, "invalid-request", "layer: Field required", "kernels: Field req")
    refused(post(client, colour=""), 422, "invalid-request", "colour: no such field")


def multipart(client: Client, *parts: tuple[bytes, bytes], path: str = "/explain") -> Response:
    """A form of parts with these dispositions."""
    fields = [(b'name="' + name.encode() + b'"', value.encode()) for name, value in {**MINI, "kernels": "3"}.items()]
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + data + b"\r\n"
        for disposition, data in (*fields, *parts)
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return client.post(path, content=body + b"--b--\r\n", headers=headers)


@pytest.mark.parametrize(
    "disposition",
    [
        b'name="image"',
        b"name=\"image\"; filename*=UTF-8''caf%C3%A9.png",
        b'name="image"; filename="a.png"',
        b"name=image",
    ],
)
def test_an_image_needs_no_plain_filename(client: Client, disposition: bytes) -> None:
    """As `curl -F 'image=<cat.png'` and some libraries send it, 64 kB or more."""
    for side in (16, 300):
        answer = multipart(client, (disposition, png(noise(side, side))))
        assert answer.status_code == 202, answer.text


def test_a_page_s_form_without_a_chosen_file(client: Client) -> None:
    """It sends an empty file without a name."""
    refused(multipart(client, (b'name="image"; filename=""', b"")), 422, "invalid-request", "the form has no file")
    answer = multipart(client, (b'name="image"; filename=""', b""), (b'name="image"; filename="a"', png(noise())))
    assert answer.status_code == 202, answer.text


def test_more_files_than_are_taken(client: Client) -> None:
    """They are counted."""
    parts = [(b'name="image"; filename="a"', png(noise(8, 8)))] * 17
    refused(multipart(client, *parts), 422, "invalid-request", "17 files", "at most 16")


@pytest.mark.parametrize(
    "text", ["1_0", "٣", "0x10", "+3", "03", "1.", ".5", "1e", "- 1", "1e999", "Infinity", "1" * 5000]
)
def test_numbers_in_forms_are_as_in_json(client: Client, text: str) -> None:
    """What JSON does not have is none, in any field and in JSON's strings."""
    for name in ("kernels", "alpha", "iterations", "gamma"):
        extra = {"methods": "evidence"} if name == "gamma" else {}
        refused(form(client, **{"kernels": "3", **extra, name: text}), 422, "invalid-request", name)
        refused(post_json(client, **{name: text}, **extra), 422, "invalid-request", name)


def test_numbers_in_forms_may_be_written_as_in_json(client: Client) -> None:
    """`1e3` iterations are 1000; the kernel -0 is 0; 1.0 is no index."""
    answer = post(client, kernels="-0", alpha="1e-1,-0,2.50", iterations="1e3", deadline_s="1.5e2")
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert [request[name] for name in ("kernels", "alpha", "iterations", "deadline_s")] == [
        [0],
        [0.1, 0.0, 2.5],
        1000,
        150.0,
    ]
    for kernel in ("1.0", "1e1"):
        refused(post(client, kernels=kernel), 422, "invalid-request", "names no kernel")
    refused(post_json(client, alpha=True), 422, "invalid-request", "alpha.0", "number")


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_compressed_bodies_are_refused_as_such(client: Client, coding: str) -> None:
    """Before they are read, with what is taken."""
    body = gzip.compress(json.dumps(WANTED).encode())
    answer = client.post("/explain", content=body, headers={**JSON, "Content-Encoding": coding})
    refused(answer, 415, "unsupported-content-type", f"Content-Encoding is {coding.lower()}", "as it is")
    assert answer.headers["accept-encoding"] == "identity"


def test_a_body_that_says_it_is_not_compressed_is_taken(client: Client) -> None:
    """`identity` is what it is."""
    answer = client.post("/explain", json=WANTED, headers={"Content-Encoding": "identity"})
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("folder", ["/", "/models/", "/jobs/", "/web/", "/problems/"])
def test_long_paths_are_not_repeated(client: Client, folder: str) -> None:
    """Nor are they a 500."""
    answer = client.get(folder + "x" * 9000)
    assert answer.status_code == 404
    assert len(answer.content) < 2000


def test_quotes_without_end_cost_little(client: Client) -> None:
    """Ten megabytes of empty strings, of escaped quotes, of backslashes."""
    for unit in ('"",', '\\"', "\\", '"data":"",', "[],"):
        begin = time.monotonic()
        answer = send(client, '{"images": ["' + unit * (10_000_000 // len(unit)))
        assert time.monotonic() - begin < 10
        assert answer.status_code == 413, unit


def test_the_bound_is_exact(client: Client) -> None:
    """200,000 bytes beside a picture are taken, and one more is not, wherever they are."""
    start, end = '{"images": [{"data": "', '"}], "model": "vgg_mini", "layer": "conv2_2", "kernels": [3]}'
    for size, status in ((200_000, 202), (200_001, 413)):
        pad = " " * (size - len(start) - len(end))
        for body in (pad + start + PICTURE + end, start + PICTURE + end + pad):
            assert send(client, body).status_code == status
