"""What the client sends, when it sends it again, and how it parses responses and events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from httpx_sse import ServerSentEvent
from PIL import Image, ImageOps
from pydantic import TypeAdapter
from tenacity import Retrying

from kernelscope.client import (
    Client,
    NotFound,
    NotKernelscope,
    ProgressEvent,
    ServerError,
    ServerUnreachable,
    StatusEvent,
    TooManyRequests,
    Unauthorized,
    UntrustedCertificate,
)
from kernelscope.client.events import EventLog
from kernelscope.client.files import folder_name
from kernelscope.client.pictures import file_of
from kernelscope.client.transport import form, retrying
from shared.errors import JobExpired, KernelscopeError, QueueFull, RateLimited
from shared.errors import Unauthorized as NoKey
from shared.images import decode
from shared.schemas import ExplainRequest, ItemResult, Job, Status, plan
from tests.conftest import encoded, noise
from tests.unit import profiles

Answering = Callable[[httpx.Request], httpx.Response]


def client(answer: Answering, patience: float = 5.0) -> Client:
    """A client whose server is a function."""
    made = Client("http://server", "ks_secret", patience=patience)
    made._http = httpx.Client(
        base_url="http://server", transport=httpx.MockTransport(answer), headers=made._http.headers
    )
    return made


class Script:
    """Responds with these in turn, then always with the last one, and records the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers: Sequence[httpx.Response | Exception] = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The next response."""
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def problem(error: QueueFull | RateLimited | NoKey, **headers: str) -> httpx.Response:
    """The API's response."""
    return httpx.Response(error.status, json=error.problem().model_dump(), headers=headers)


def test_a_request_is_retried_with_one_idempotency_key() -> None:
    """After a lost connection, a proxy's 502, our own 503; each time it is the same request."""
    lost, away = httpx.ConnectError("refused"), problem(QueueFull("full"))
    script = Script(lost, httpx.Response(502, text="bad gateway"), away, httpx.Response(422, json={}))
    with client(script) as one, pytest.raises(ServerError):
        one.explain(b"x", layer="conv1_1", kernels=[1, 2], alpha=0.5, only_remove=True)
    assert len(script.requests) == 4
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer ks_secret"}
    body = script.requests[0].read()
    assert b"1,2" in body
    assert b"true" in body


def test_retries_end() -> None:
    """With `patience=0` after one attempt. The error has the URL, and how to start a server."""
    script = Script(httpx.ConnectError("refused"))
    with client(script, patience=0) as one, pytest.raises(ServerUnreachable, match=r"http://server.*kernelscope up"):
        one.models()
    assert len(script.requests) == 1
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "60"}))
    with client(script) as one, pytest.raises(TooManyRequests):
        one.models()
    assert len(script.requests) == 1  # longer than the patience: raised at once


def test_an_untrusted_certificate_is_named_at_once() -> None:
    """It is no server that is away: no second attempt, and the way to trust it."""
    script = Script(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"))
    with client(script) as one, pytest.raises(UntrustedCertificate, match="SSL_CERT_FILE"):
        one.models()
    assert len(script.requests) == 1


def test_a_redirection_is_no_success() -> None:
    """A proxy's sign-in page neither deletes anything nor is a list."""
    script = Script(*[httpx.Response(302, headers={"Location": "https://login"}, text="sign in")] * 2)
    with client(script) as one:
        with pytest.raises(NotKernelscope):
            one.delete_dataset("0" * 32)
        with pytest.raises(NotKernelscope):
            one.models()


def test_retry_after_is_honoured() -> None:
    """The client waits at least so long."""
    script = Script(problem(RateLimited("wait"), **{"Retry-After": "1"}), httpx.Response(200, json=[]))
    begin = time.monotonic()
    with client(script) as one:
        assert one.models() == []
    assert time.monotonic() - begin >= 1


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential backoff with jitter, so that many clients do not retry together; the total time is limited."""
    pauses: list[list[float]] = [[], []]
    for paused in pauses:
        again = retrying(Retrying, 60)
        monkeypatch.setattr(again, "sleep", paused.append)

        def fail(paused: list[float] = paused) -> None:
            if len(paused) < 4:
                raise ServerUnreachable("http://server", None)

        again(fail)
    assert pauses[0] != pauses[1]
    assert all(0.5 <= pause / (0.2 * 2**number) <= 1 for each in pauses for number, pause in enumerate(each))
    begin = time.monotonic()
    with client(Script(httpx.ConnectError("refused")), patience=1) as one, pytest.raises(ServerUnreachable):
        one.models()
    assert time.monotonic() - begin < 1.5


def test_another_server_is_recognised() -> None:
    """By its error pages, whose HTML is not shown, and by responses that cannot be parsed."""
    page = httpx.Response(404, html="<!DOCTYPE HTML><html><h1>Error response</h1></html>")
    with (
        client(Script(page)) as one,
        pytest.raises(ServerError, match=r"Not Found: http://server/models returned a web page"),
    ):
        one.models()
    with (
        client(Script(httpx.Response(200, html="<html>"))) as one,
        pytest.raises(NotKernelscope, match="http://server"),
    ):
        one.models()


def test_errors_have_the_class_of_their_status() -> None:
    """A missing key, and a response that is not ours."""
    with client(Script(problem(NoKey("no key")))) as one, pytest.raises(Unauthorized, match="API key needed"):
        one.models()
    with (
        client(Script(httpx.Response(418, text="a teapot"))) as one,
        pytest.raises(ServerError, match="teapot") as raised,
    ):
        one.models()
    assert raised.value.status == 418


def test_what_is_not_an_image_is_refused_before_it_is_sent() -> None:
    """The message says what can be used."""
    with pytest.raises(TypeError, match=r"int is not an image; .* an array \(height, width\)"):
        file_of(17)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        file_of("missing.jpg")


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


JOB = Job.model_validate(
    {
        "id": "j",
        "status": "succeeded",
        **dict.fromkeys(("created_at", "started_at", "finished_at", "expires_at"), "2030-01-01T00:00:00Z"),
        "attempt": 1,
        "queue_position": None,
        "request": {"images": ["a" * 64], "layer": "conv2_1", "kernels": [3]},
        "progress": {"completed": 1, "total": 1, "failed": 0},
        "failed_items": 0,
        "links": {},
        "results": [],
        "error": None,
    }
)


def test_the_same_picture_twice_is_saved_twice() -> None:
    """Under the image's number, which its digest does not distinguish."""
    for fields in ({"kernels": "top:1"}, {"kernels": [], "methods": ["activations"]}):
        request = ExplainRequest.model_validate({"images": ["a" * 64] * 2, "layer": "conv2_1", **fields})
        (items,) = plan(request, 100)
        results = [ItemResult.of(item, request, 3) for item in items]
        job = JOB.model_copy(update={"request": request, "results": results})
        assert [folder_name(job, result)[:21] for result in results] == [
            "image0-conv2_1-kernel",
            "image1-conv2_1-kernel",
        ]


def test_ignored_metadata_of_a_pillow_image_is_a_warning() -> None:
    """The same that the server notes in a result."""
    picture = noise()
    picture.info["exif"] = b"garbage"
    with pytest.warns(UserWarning, match="EXIF data of the image's file was ignored"):
        assert decoded(picture).tobytes() == noise().tobytes()


@pytest.mark.parametrize(
    ("kernels", "sent"),
    [
        (np.argsort([3.0, 1.0, 2.0])[::-1][:2], "0,2"),
        (np.array([[5], [7]]), "5,7"),
        (np.array(5), "5"),
        (np.int64(5), "5"),
        ([np.int32(1), np.uint8(2)], "1,2"),
        (range(2, 5), "2,3,4"),
        ((kernel for kernel in (1, 2)), "1,2"),
        ("top:3", "top:3"),
    ],
)
def test_kernels_of_any_type_are_sent(kernels: Any, sent: str) -> None:
    """Lists, ranges, arrays and NumPy's numbers."""
    _, fields = form(b"x", {"kernels": kernels})
    assert fields == {"kernels": sent}


def test_other_fields_of_numpy_s_types_are_sent() -> None:
    """None is not sent."""
    given = {
        "beta": np.linspace(0, 1, 3),
        "alpha": np.float32(0.1),
        "only_remove": np.bool_(True),
        "iterations": np.int64(9),
        "gamma": None,
    }
    _, fields = form(b"x", given)
    assert fields == {"beta": "0.0,0.5,1.0", "alpha": "0.1", "only_remove": "true", "iterations": "9"}


def log() -> EventLog[ItemResult]:
    """Of a job of which nothing has been read yet."""
    return EventLog(TypeAdapter(ItemResult))


def test_events_continue_after_the_last_one_and_unknown_ones_are_skipped() -> None:
    """Ids are kept; a terminal status is the end."""
    read = log()
    assert read.headers == {}
    assert read.parse(ServerSentEvent("status", '{"status": "running"}', "1-0")) == StatusEvent(Status.RUNNING)
    assert read.parse(ServerSentEvent("news", "{}", "2-0")) is None
    event = read.parse(ServerSentEvent("progress", '{"completed": 1, "total": null, "loss": 0.5}', "3-0"))
    assert event == ProgressEvent(1, None, loss=0.5)
    assert read.headers == {"Last-Event-ID": "3-0"}
    assert not read.ended
    read.parse(ServerSentEvent("status", '{"status": "failed"}', "4-0"))
    assert read.ended


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [(JobExpired("deleted"), "gone", NotFound), (NoKey("revoked"), "problem", Unauthorized)],
)
def test_events_that_end_for_good_raise_the_reason(
    error: KernelscopeError, kind: str, raised: type[ServerError]
) -> None:
    """The job was deleted, or the key revoked, while its events were read."""
    data = error.problem().model_dump_json()
    with pytest.raises(raised, match=error.detail):
        log().parse(ServerSentEvent(kind, data))


def test_events_are_resumed_after_a_server_error() -> None:
    """After the last event."""
    read = log()
    read.parse(ServerSentEvent("status", '{"status": "running"}', "1-0"))
    assert read.parse(ServerSentEvent("problem", KernelscopeError("a bug").problem().model_dump_json())) is None
    assert not read.ended
    assert read.headers == {"Last-Event-ID": "1-0"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_requests_to_this_machine_use_no_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Whatever the environment says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(f"http://{host}:8000") as client:
        own = client._http._transport_for_url(httpx.URL(f"http://{host}:8000/jobs"))
        others = client._http._transport_for_url(httpx.URL("http://lab.example/jobs"))
    assert own is client._http._transport
    assert others is not own
