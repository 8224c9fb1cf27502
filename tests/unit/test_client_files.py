"""The files that the client writes and reads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kernelscope.client import AsyncClient, Client, NotFound, ServerUnreachable
from kernelscope.client.files import folder_name
from shared.errors import JobExpired
from shared.schemas import ExplainRequest, ItemResult, plan
from tests.unit.client_server import JOB, LINKS, Answering, awaited, client, cut_off, record


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


def bundled(kind: type[Client | AsyncClient], server: Answering, path: Path) -> Path:
    """What `Job.bundle` of either client returns."""

    async def story() -> Path:
        async with awaited(server) as one:
            return await (await one.job("j")).bundle(path)

    if kind is AsyncClient:
        return asyncio.run(story())
    with client(server, patience=0) as one:
        return one.job("j").bundle(path)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_download_replaces_a_file_once_it_is_complete(tmp_path: Path, kind: type[Client | AsyncClient]) -> None:
    """An error, or a connection that is lost, leaves the old file, and no other."""
    bodies: dict[type[Exception] | None, Callable[[], httpx.Response]] = {
        NotFound: lambda: httpx.Response(410, json=JobExpired("it was deleted").problem().model_dump()),
        ServerUnreachable: cut_off,
        None: lambda: httpx.Response(200, content=b"all of it"),
    }
    path = tmp_path / "all.zip"
    path.write_bytes(b"old")
    for error, body in bodies.items():

        def server(request: httpx.Request, body: Callable[[], httpx.Response] = body) -> httpx.Response:
            return body() if request.url.path == LINKS["bundle"] else httpx.Response(200, json=record("succeeded"))

        if error is None:
            assert bundled(kind, server, path) == path
        else:
            with pytest.raises(error):
                bundled(kind, server, path)
            assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"all of it"


def test_a_download_is_retried(tmp_path: Path) -> None:
    """From its beginning, after the connection was lost."""
    bodies = [cut_off(), httpx.Response(503), httpx.Response(200, content=b"all of it")]

    def server(request: httpx.Request) -> httpx.Response:
        return bodies.pop(0) if request.url.path == LINKS["bundle"] else httpx.Response(200, json=record("succeeded"))

    with client(server) as one:
        assert one.job("j").bundle(tmp_path / "all.zip").read_bytes() == b"all of it"


def test_files_do_not_block_the_event_loop(tmp_path: Path) -> None:
    """A file system that does not respond: here a pipe, which can only be opened once somebody reads it."""
    image, archive = tmp_path / "image.png", tmp_path / "all.zip"
    os.mkfifo(image)
    os.mkfifo(tmp_path / "all.zip.part")

    def server(request: httpx.Request) -> httpx.Response:
        bundle = request.url.path == LINKS["bundle"]
        return httpx.Response(200, content=b"all of it") if bundle else httpx.Response(200, json=record("succeeded"))

    async def story() -> None:
        async with awaited(server) as one:
            job = await one.job("j")
            blocked = [
                asyncio.create_task(one.explain(image, layer="conv2_1", kernels=[1])),
                asyncio.create_task(job.bundle(archive)),
            ]
            done, _ = await asyncio.wait(blocked, timeout=0.3)
            assert not done
            await asyncio.to_thread(image.write_bytes, b"an image")
            assert await asyncio.to_thread((tmp_path / "all.zip.part").read_bytes) == b"all of it"
            await asyncio.gather(*blocked)

    asyncio.run(story())
