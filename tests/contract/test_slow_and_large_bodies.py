"""Bodies that are too large and connections that are too slow: refused early, without effect on others."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import repeat

import httpx
import pytest

from api.edge.body_limit import BODY_SECONDS, PAUSE_SECONDS
from api.edge.protocol import HEADER_BYTES, HEADER_SECONDS, READER_SECONDS
from tests.conftest import FULL
from tests.contract.conftest import Memory, Plant, alive

pytestmark = pytest.mark.contract

BODY = 2 * 10**9
LIMIT = 32 * 10**6  # KERNELSCOPE_MAX_BODY_MB
PIECE = bytes(2**20)
GROWTH_MB = 100
HEAD_DRIBBLERS, BODY_DRIBBLERS = 200, 50
PROMPT = 0.2  # seconds, the median of ordinary requests
SLACK = 5.0  # seconds

JSON = "application/json"
POST = "POST /explain HTTP/1.1\r\nHost: localhost\r\n"
FORM = "multipart/form-data; boundary=frontier"
FILE = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'

Record = Callable[[str, object], None]


@pytest.mark.parametrize(("media", "start"), [(JSON, b'{"images": ["'), (FORM, FILE)], ids=["json", "form"])
def test_a_body_of_2_gb_is_refused_while_it_streams(
    service: Plant, record_property: Record, media: str, start: bytes
) -> None:
    """Its length is not announced; the response is 413 at 32 MB, and it uses no memory."""
    memory = Memory(service)
    head = f"{POST}Content-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with closing(_connection(service)) as connection:
        connection.sendall(head + _chunk(start))
        sent, answer = _stream(connection)
    record_property("sent_mb_before_the_answer", round(sent / 1e6))
    record_property("memory_growth_mb", round(memory.peak - memory.start, 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert LIMIT < sent < 3 * LIMIT
    assert memory.peak - memory.start < GROWTH_MB
    assert alive(service)


def test_a_client_that_continues_after_the_refusal_costs_no_memory(service: Plant, record_property: Record) -> None:
    """It sends all of the 2 GB, whatever the response."""
    memory = Memory(service)
    head = f"{POST}Content-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    sent = 0
    with closing(_connection(service)) as connection, suppress(ConnectionError):
        connection.sendall(head)
        for _ in range(BODY // len(PIECE)):
            connection.sendall(_chunk(PIECE))
            sent += len(PIECE)
    record_property("sent_mb_before_it_was_cut_off", round(sent / 1e6))
    record_property("memory_growth_mb", round(memory.peak - memory.start, 1))
    assert memory.peak - memory.start < GROWTH_MB
    assert alive(service)


def test_a_body_announced_as_too_large_is_refused_at_once(service: Plant, record_property: Record) -> None:
    """Before any of it is sent."""
    head = f"{POST}Content-Type: {JSON}\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
    with closing(_connection(service)) as connection:
        begin = time.monotonic()
        connection.sendall(head.encode())
        answer = connection.recv(4096)
    record_property("milliseconds", round(1e3 * (time.monotonic() - begin), 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - begin < 1


def test_a_body_of_exactly_the_limit_is_read(service: Plant) -> None:
    """It is refused for its content, not for its size; one byte more is too large."""
    for extra, status in ((0, 400), (1, 413)):
        start = b'{"images": [{"data": "'
        body = start + b"A" * (LIMIT - len(start) + extra)
        answer = httpx.post(f"{service.url}/explain", content=body, headers={"Content-Type": JSON}, timeout=30)
        assert answer.status_code == status, answer.text


def test_slow_clients_delay_no_others(service: Plant, record_property: Record) -> None:
    """200 clients send a head slowly and 50 a body: others are served; a head must arrive within 10 s."""
    memory = Memory(service)
    ends, answers = asyncio.run(_besieged(service))
    heads, bodies = ends[:HEAD_DRIBBLERS], ends[HEAD_DRIBBLERS:]
    record_property("median_ms", round(1e3 * statistics.median(answers), 1))
    record_property("worst_ms", round(1e3 * max(answers), 1))
    record_property("heads_cut_off_after_s", [round(min(heads), 1), round(max(heads), 1)])
    if FULL:
        record_property("bodies_cut_off_after_s", [round(min(bodies), 1), round(max(bodies), 1)])
        assert max(bodies) < BODY_SECONDS + SLACK
    record_property("memory_growth_mb", round(memory.peak - memory.start, 1))
    assert statistics.median(answers) < PROMPT
    assert min(heads) > HEADER_SECONDS - 1
    assert max(heads) < HEADER_SECONDS + SLACK
    assert alive(service)


def _watched() -> float:
    """How long slow clients are observed; in full, until the last of them must have been disconnected."""
    return BODY_SECONDS + 2 * SLACK if FULL else HEADER_SECONDS + SLACK


async def _besieged(plant: Plant) -> tuple[list[float], list[float]]:
    """When the slow clients were disconnected, heads first, and the times of ordinary requests meanwhile."""
    until = time.monotonic() + _watched()
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    body = f"{POST}Content-Type: {JSON}\r\nContent-Length: 1000\r\n\r\n".encode()
    starts = [*repeat(head, HEAD_DRIBBLERS), *repeat(body, BODY_DRIBBLERS)]
    slow = [asyncio.create_task(_dribble(plant, start, until)) for start in starts]
    answers = []
    async with httpx.AsyncClient(base_url=plant.url, timeout=30) as client:
        while not all(task.done() for task in slow):
            begin = time.monotonic()
            assert (await client.get("/jobs")).status_code == 200
            answers.append(time.monotonic() - begin)
            await asyncio.sleep(0.05)
    return await asyncio.gather(*slow), answers


async def _dribble(plant: Plant, start: bytes, until: float) -> float:
    """Send a byte a second; returns the seconds until the server disconnected, or until the test stops."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.api_port)
    begin = time.monotonic()
    writer.write(start)
    end = asyncio.create_task(reader.read())
    while time.monotonic() < until and not end.done():
        writer.write(b"a")
        await asyncio.wait([end], timeout=1)
    seconds = time.monotonic() - begin
    end.cancel()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return seconds


def test_a_body_that_pauses_too_long_is_refused(service: Plant, record_property: Record) -> None:
    """408 after 15 s without data; then the connection is closed, whatever the client still sends."""
    head = f"{POST}Content-Type: {JSON}\r\nContent-Length: 1000\r\n\r\n{{"
    with closing(_connection(service)) as connection:
        begin = time.monotonic()
        connection.settimeout(PAUSE_SECONDS + SLACK)
        connection.sendall(head.encode())
        answer = connection.recv(4096)
        seconds = time.monotonic() - begin
        over = _is_closed(connection, 2 * SLACK)
    record_property("seconds", round(seconds, 1))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert PAUSE_SECONDS - 1 < seconds < PAUSE_SECONDS + SLACK
    assert over, "the connection is kept for a caller that was refused"


def _is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes the connection while the client sends a byte a second."""
    until = time.monotonic() + seconds
    connection.settimeout(1)
    while time.monotonic() < until:
        try:
            connection.sendall(b"a")
            if not connection.recv(4096):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize("pieces", [1, 100], ids=["at-once", "in-pieces"])
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["endless", "whole"])
def test_a_head_over_64_kb_is_refused(service: Plant, end: bytes, pieces: int) -> None:
    """The application does not see it."""
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * (2 * HEADER_BYTES) + end
    size = -(-len(head) // pieces)
    with closing(_connection(service)) as connection:
        connection.settimeout(2)
        answer = b""
        with suppress(ConnectionError):
            for start in range(0, len(head), size):
                connection.sendall(head[start : start + size])
                time.sleep(0.002)
            answer = connection.recv(4096)
    assert b" 200 " not in answer
    assert alive(service)


def _connection(plant: Plant) -> socket.socket:
    return socket.create_connection(("127.0.0.1", plant.api_port), timeout=10)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _stream(connection: socket.socket) -> tuple[int, bytes]:
    """Send until there is a response, 2 GB at most; returns the bytes sent, and the response."""
    sent = 0
    with suppress(ConnectionError):
        while sent < BODY:
            connection.sendall(_chunk(PIECE))
            sent += len(PIECE)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                return sent, connection.recv(4096)
            connection.settimeout(10)
    connection.settimeout(10)
    return sent, connection.recv(4096)


def test_a_client_that_does_not_read_a_large_response_is_disconnected(service: Plant, record_property: Record) -> None:
    """After some time; a slow one is not."""
    head = b"GET /web/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8
    with closing(_connection(service)) as silent, closing(_connection(service)) as slow:
        for connection in (silent, slow):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.sendall(head)
        begin, read = time.monotonic(), 0
        while time.monotonic() < begin + READER_SECONDS + SLACK:
            read += len(slow.recv(200_000))
            time.sleep(0.5)
        assert read > 1_000_000
        left = 0
        with suppress(ConnectionError):
            while piece := silent.recv(2**20):
                left += len(piece)
        assert left < 8_000_000  # of twelve; the rest is in transit
        assert slow.recv(1000)
    record_property("slow_reader_mb", round(read / 1e6, 1))
    assert alive(service)
