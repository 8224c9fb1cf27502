"""Multipart forms: their fields and files."""

from __future__ import annotations

from typing import Any

import pytest
from httpx import Client, Response

from tests.api.test_explain import MINI, post, post_json, refused
from tests.conftest import noise, png


def form(client: Client, path: str = "/explain", **fields: str | list[str]) -> Response:
    """Send a form; a list is sent as a part for each of its values."""
    data = {"model": "vgg_mini", "layer": "conv2_2", **fields}
    return client.post(path, files={"image": ("x", png(noise()))}, data=data)


@pytest.mark.parametrize(
    "fields",
    [
        {"kernels": ["3", "16"], "methods": ["suppression", "lrp"], "alpha": ["0", "1"], "beta": ["0.5", "2"]},
        {"kernels[]": ["3", "16"], "methods[]": ["suppression", "lrp"], "alpha[]": ["0", "1"], "beta[]": ["0.5", "2"]},
        {"kernels": "3,16", "methods": "suppression,lrp", "alpha": "0,1", "beta": "0.5,2"},
    ],
)
def test_lists_are_repeated_fields_or_have_commas(client: Client, fields: dict[str, Any]) -> None:
    """Repeated as by curl, requests and httpx, repeated with brackets as by axios, or in one field."""
    answer = form(client, **fields)
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert [request[name] for name in ("kernels", "methods", "alpha", "beta")] == [
        [3, 16],
        ["suppression", "lrp"],
        [0.0, 1.0],
        [0.5, 2.0],
    ]


def test_each_kernel_may_have_a_field_of_its_own(client: Client) -> None:
    """All kernels of the widest layer, some with commas."""
    answer = form(client, model="vgg16", layer="conv5_3", kernels=["0,1", *map(str, range(2, 512))])
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["kernels"] == list(range(512))


@pytest.mark.parametrize("kernels", [["top:5", "top:5"], ["top:5", "3"], ["3", "top:5"], "3,top:5"])
def test_the_most_active_kernels_cannot_be_combined(client: Client, kernels: str | list[str]) -> None:
    """`top:N` is given once, and without indices."""
    refused(form(client, kernels=kernels), 422, "invalid-request", '"top:N" must stand alone', "[12, 40]")


@pytest.mark.parametrize("path", ["/explain", "/activations"])
def test_a_field_of_one_value_may_not_be_repeated(client: Client, path: str) -> None:
    """The error lists each of them; unknown fields are reported as unknown."""
    kernels = {"kernels": ["3", "16"]} if path == "/explain" else {}
    fields: dict[str, Any] = {**kernels, "model": ["vgg16", "vgg_mini"], "layer": ["conv2_2"] * 3}
    said = ["model: given 2 times; give it once", "layer: given 3 times; give it once"]
    problem = refused(form(client, path, **fields), 422, "invalid-request", *said)
    assert {error["field"] for error in problem["errors"]} == {"model", "layer"}
    refused(form(client, path, **kernels, colour=["red", "blue"]), 422, "invalid-request", "colour: no such field")


@pytest.mark.parametrize("path", ["/explain", "/activations"])
def test_an_image_without_a_filename(client: Client, path: str) -> None:
    """`-F image=cat.jpg`, without the @, sends no image: the error says how to send a file."""
    fields = {**MINI, "image": "cat.jpg"} if path == "/explain" else {"layer": "conv2_2", "image": "cat.jpg"}
    parts = {name: (None, value.encode()) for name, value in fields.items()}
    said = ["no filename", "curl -F image=@cat.jpg"]
    refused(client.post(path, files=parts), 422, "invalid-request", *said)
    long = {**parts, "image": (None, b"x" * 100_000)}
    refused(client.post(path, files=long), 422, "invalid-request", *said)


def test_several_images_may_have_brackets(client: Client) -> None:
    """As axios sends them."""
    files = [("image[]", (f"{seed}.png", png(noise(seed=seed)))) for seed in range(2)]
    answer = client.post("/explain", files=files, data=MINI)
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["request"]["images"]) == 2


def test_a_truncated_form_is_malformed(client: Client) -> None:
    """It does not become a job with half an image or without a field."""
    whole = client.build_request("POST", "/explain", files={"image": ("x", png(noise()))}, data=MINI)
    body = whole.read()
    headers = {"Content-Type": whole.headers["content-type"]}
    for end in (0, 10, 300, len(body) // 2, len(body) - 10):
        refused(client.post("/explain", content=body[:end], headers=headers), 400, "malformed-body", "cannot be read")


def test_empty_fields_of_a_form_count_as_missing(client: Client) -> None:
    """Web forms send fields that were left empty: optional ones get their default, others are reported as missing."""
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
    """Send a form with these dispositions and contents."""
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
    """As `curl -F 'image=<cat.png'` and some libraries send it, even above 64 kB."""
    for side in (16, 300):
        answer = multipart(client, (disposition, png(noise(side, side))))
        assert answer.status_code == 202, answer.text


def test_a_web_form_without_a_chosen_file(client: Client) -> None:
    """Browsers then send an empty file without a name."""
    refused(multipart(client, (b'name="image"; filename=""', b"")), 422, "invalid-request", "the form has no file")
    answer = multipart(client, (b'name="image"; filename=""', b""), (b'name="image"; filename="a"', png(noise())))
    assert answer.status_code == 202, answer.text


def test_too_many_files(client: Client) -> None:
    """The error has their number."""
    parts = [(b'name="image"; filename="a"', png(noise(8, 8)))] * 17
    refused(multipart(client, *parts), 422, "invalid-request", "17 files", "at most 16")


@pytest.mark.parametrize(
    "text", ["1_0", "٣", "0x10", "+3", "03", "1.", ".5", "1e", "- 1", "1e999", "Infinity", "1" * 5000]
)
def test_numbers_in_forms_are_as_in_json(client: Client, text: str) -> None:
    """Other spellings are refused, in any field and in JSON strings."""
    for name in ("kernels", "alpha", "iterations", "gamma"):
        extra = {"methods": "evidence"} if name == "gamma" else {}
        refused(form(client, **{"kernels": "3", **extra, name: text}), 422, "invalid-request", name)
        refused(post_json(client, **{name: text}, **extra), 422, "invalid-request", name)


def test_numbers_in_forms_may_be_written_as_in_json(client: Client) -> None:
    """`1e3` iterations are 1000, the kernel -0 is 0, 1.0 is not an index."""
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
