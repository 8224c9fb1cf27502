"""`kernelscope datasets`: many images under one name, on a server; an image is sent once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kernelscope.client import Client, ServerError
from kernelscope.serving import AsJson, DataDir, Key, Url, local_settings, remote
from kernelscope.terminal import document, err, out, plain, say, table
from shared.archives import Member, Odd, archive_form, members, shown
from shared.datasets import DataSets
from shared.errors import UnsupportedImage
from shared.schemas import AddedImages, DataSet, OddFile
from shared.store import BlobStore

PATIENCE = 60.0  # seconds that a server may be away in mid-upload
BATCH_BYTES, BATCH_FILES = 16_000_000, 200
LARGEST_BYTES = 30_000_000  # of an image: the limit of a request, unless the server's operator has changed it
MOST_SHOWN = 20  # refused files
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")

datasets = typer.Typer(no_args_is_help=True, help="Upload many images to a server under one name.")


@datasets.command()
def add(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Folders, images, ZIP or tar files.", exists=True)
    ],
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: that of the first path.")] = None,
    url: Url = None,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Add images to your data set of this name, which is created if needed. Repeated, it sends only new images.

    Exit code 0: the images are on the server, except those that are listed; 1: no server; 2: no image; 130: Ctrl-C.

    Example: kernelscope datasets add photos/ --name birds
    """
    first = paths[0].resolve()
    name = name or (first.name if first.is_dir() else first.stem)
    files = list(files_in(paths))
    if not files:
        raise typer.BadParameter(f"there is no image in {', '.join(map(str, paths))} ({', '.join(SUFFIXES)})")
    with remote(url, key, PATIENCE) as client:
        mine = [one for one in client.datasets() if one.mine and one.name == name]
        dataset = mine[0] if mine else client.create_dataset(name)
        dataset, odd = sent(client, dataset, files)
    if as_json:
        document(plain(dataset.model_copy(update={"odd": odd}))[0])
        return
    for one in odd[:MOST_SHOWN]:
        say(f"not accepted: {one.name}: {one.reason}")
    if len(odd) > MOST_SHOWN:
        say(f"and {len(odd) - MOST_SHOWN} others; {dataset.links['self']} lists some of them")
    say(f"{dataset.name} ({dataset.id}) has {dataset.images:,} images", out)


def sent(client: Client, dataset: DataSet, files: Sequence[tuple[str, Path]]) -> tuple[DataSet, list[OddFile]]:
    """Send images. Returns the data set afterwards, and the files that were not accepted."""
    known = {one.sha256 for one in client.dataset_images(dataset.id)} if dataset.images else set()
    odd: list[OddFile] = []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(f"to {dataset.name}", total=len(files))
        read = _read(files, known, odd, lambda: bar.advance(task))
        for batch in _batches(read):
            for answer in _added(client, dataset.id, batch, odd):
                dataset = answer.dataset
                odd += answer.odd
    return dataset, odd


def _added(client: Client, dataset_id: str, batch: dict[str, bytes], odd: list[OddFile]) -> Iterator[AddedImages]:
    """The answers to a batch, which is halved where the server takes smaller bodies only."""
    try:
        yield client.add_images(dataset_id, batch)
    except ServerError as error:
        if error.status != 413:
            raise
        names = list(batch)
        if len(names) == 1:
            odd.append(OddFile(name=names[0], reason=error.problem.detail))
            return
        middle = len(names) // 2
        for half in (names[:middle], names[middle:]):
            yield from _added(client, dataset_id, {name: batch[name] for name in half}, odd)


def _read(
    files: Iterable[tuple[str, Path]], known: set[str], odd: list[OddFile], done: Callable[[], object]
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of what the server does not know yet; archives are unpacked here, however large they are."""
    for name, path in files:
        try:
            for one in _in(name, path):
                if isinstance(one, Odd):
                    odd.append(OddFile(name=one.name, reason=one.reason))
                elif (digest := hashlib.sha256(one.data).hexdigest()) not in known:
                    known.add(digest)
                    yield one.name, one.data
        except OSError as error:
            odd.append(OddFile(name=name, reason=error.strerror or str(error)))
        except UnsupportedImage as error:
            odd.append(OddFile(name=name, reason=error.detail))
        done()


def _in(name: str, path: Path) -> Iterator[Member | Odd]:
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if archive_form(head):
            for one in members(file, LARGEST_BYTES):
                yield replace(one, name=f"{name}/{one.name}")
        elif path.stat().st_size > LARGEST_BYTES:
            yield Odd(name, f"larger than {LARGEST_BYTES / 1e6:g} MB")
        else:
            yield Member(name, file.read())


def _batches(images: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    """As many as go into a request."""
    batch: dict[str, bytes] = {}
    for name, data in images:
        full = len(batch) == BATCH_FILES or sum(map(len, batch.values())) + len(data) > BATCH_BYTES
        if batch and (full or name in batch):
            yield batch
            batch = {}
        batch[name] = data
    if batch:
        yield batch


def files_in(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and place of each file; in folders those that may be images or archives, in the order of their names."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                    yield shown(file.relative_to(path.parent).as_posix()), file
        else:
            yield shown(path.name), path


@datasets.command("list")
def listed(url: Url = None, key: Key = None, *, as_json: AsJson = False) -> None:
    """List your data sets, and public ones.

    Exit code 0: they are listed; 1: no server.

    Example: kernelscope datasets list
    """
    with remote(url, key) as client:
        found = client.datasets()
    if as_json:
        document(plain(*found))
    elif not found:
        out.print("no data sets; `kernelscope datasets add FOLDER` creates one")
    else:
        made = table("", "data set", "name", "made", "images", "refused", "", right=("images", "refused"))
        for one in found:
            whose = "" if one.mine else "public"
            made.add_row(one.id, one.name, f"{one.created_at:%F %T}", str(one.images), str(one.refused), whose)
        out.print(made)


@datasets.command()
def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of data sets, see `kernelscope datasets list`.")],
    url: Url = None,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Delete data sets of yours with their images.

    Exit code 0: they are deleted; 1: there is no such data set (those before it are deleted), or no server.

    Example: kernelscope datasets delete 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        for one in ids:
            client.delete_dataset(one)
            if not as_json:
                say(f"{one} is deleted", out)
    if as_json:
        document({"deleted": ids})


@datasets.command()
def publish(
    dataset_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the data set, see its owner's `kernelscope datasets list`.")
    ],
    data_dir: DataDir = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a data set usable for everyone. Needs the settings of the object store, as an operator has them.

    Exit code 0: it is public; 1: there is no such data set, or no object store.

    Example: kernelscope datasets publish 0123456789abcdef0123456789abcdef
    """
    settings = local_settings(data_dir=data_dir)
    DataSets(BlobStore(settings.store), settings.max_dataset_images).publish(dataset_id)
    if as_json:
        document({"published": dataset_id})
    else:
        say(f"{dataset_id} is public now", out)
