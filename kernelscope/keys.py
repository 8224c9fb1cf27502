"""`kernelscope keys`: make, list and revoke API keys; changes apply to a running server at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from redis import Redis
from rich.table import Table

from kernelscope.serving import AsJson, DataDir, local_settings, running_here
from kernelscope.stack import Stack
from kernelscope.terminal import document, out, plain, say
from shared.addresses import checked_rate
from shared.jobs import connect
from shared.keys import NAME, ApiKeys, rotate_webhook_secret, webhook_secrets
from shared.settings import Settings

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys, on the machine of the server.")

Server = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The `kernelscope up` on this machine that the keys are for; another server is refused, because keys are "
        "stored in its Redis and cannot be managed over HTTP.",
    ),
]


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Its owner; the keys of one owner see the same jobs.")],
    rate: Annotated[str | None, typer.Option(help="Limit on its requests, such as 100/second.")] = None,
    max_open: Annotated[
        int | None, typer.Option(min=1, help="Limit on its unfinished slices (16 items or less).")
    ] = None,
    data_dir: DataDir = None,
    url: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its SHA-256 is stored.

    Exit code 0: it is made; 1: the Redis does not answer; 2: an option is wrong.

    Example: kernelscope keys add lab --rate 100/second
    """
    if not re.fullmatch(NAME, name):
        raise typer.BadParameter(f"{name!r}: letters, digits, '.', '_' and '-', at most 64", param_hint="NAME")
    try:
        rate = checked_rate(rate) if rate else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rate") from None
    with _redis(data_dir, url) as redis:
        first = not ApiKeys(redis).all()
        key = ApiKeys(redis).add(name, rate, max_open)
    if as_json:
        document({"name": name, "key": key})
    else:
        typer.echo(key)
    say("store it: it cannot be shown again; send it as `Authorization: Bearer …`")
    if first:
        say(
            "this is the first key: unless KERNELSCOPE_ACCESS is open, every request needs one from now on, and jobs "
            "that were made without a key are not shown"
        )


@keys.command("list")
def listed(data_dir: DataDir = None, url: Server = None, as_json: AsJson = False) -> None:
    """Show every key that was made, except the keys themselves.

    Exit code 0: they are listed; 1: the Redis does not answer; 2: an option is wrong.

    Example: kernelscope keys list
    """
    with _redis(data_dir, url) as redis:
        found = ApiKeys(redis).all()
    if as_json:
        document([{"id": key.id, **fields} for key, fields in zip(found, plain(*found), strict=True)])
        return
    if not found:
        say("no keys; `kernelscope keys add NAME` makes one", out)
        return
    table = Table("id", "name", "made", "revoked", "rate", "slices", box=None)
    for key in found:
        revoked = f"{key.revoked_at:%F %T}" if key.revoked_at else ""
        table.add_row(key.id, key.name, f"{key.created_at:%F %T}", revoked, key.rate, str(key.max_open or ""))
    out.print(table)


@keys.command()
def revoke(
    which: Annotated[str, typer.Argument(help="A key's id, or a name: then all of its keys.")],
    data_dir: DataDir = None,
    url: Server = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key, or all keys of a name: they and their sessions are refused from now on.

    Exit code 0: they are revoked; 1: there is none in force, or the Redis does not answer; 2: an option is wrong.

    Example: kernelscope keys revoke lab
    """
    with _redis(data_dir, url) as redis:
        ended = ApiKeys(redis).revoke(which)
    if as_json:
        document(plain(*ended))
    for key in [] if as_json else ended:
        say(f"revoked {key.id} ({key.name})", out)
    if not ended:
        say(f"no key with the id or name {which} is in force; `kernelscope keys list` shows them")
        raise typer.Exit(1)


@keys.command()
def secret(
    name: Annotated[str, typer.Argument(help="Owner of the jobs; none if the server has no keys.")] = "",
    data_dir: DataDir = None,
    url: Server = None,
    as_json: AsJson = False,
) -> None:
    """Show the secret that signs the webhooks of an owner's jobs (Standard Webhooks).

    Exit code 0: it is shown; 1: the Redis does not answer; 2: an option is wrong.

    Example: kernelscope keys secret lab
    """
    with _redis(data_dir, url) as redis:
        _secret(name, webhook_secrets(redis, name).secret, as_json=as_json)


@keys.command("rotate-webhook-secret")
def rotate(
    name: Annotated[str, typer.Argument(help="Owner of the jobs; none if the server has no keys.")] = "",
    data_dir: DataDir = None,
    url: Server = None,
    as_json: AsJson = False,
) -> None:
    """Make and print a new secret for the webhooks of an owner's jobs; for a day they are signed with both.

    Exit code 0: it is changed; 1: the Redis does not answer; 2: an option is wrong.

    Example: kernelscope keys rotate-webhook-secret lab
    """
    with _redis(data_dir, url) as redis:
        _secret(name, rotate_webhook_secret(redis, name).secret, as_json=as_json)
    say("messages are signed with the old secret as well for a day")


def _secret(name: str, value: str, *, as_json: bool) -> None:
    if as_json:
        document({"name": name, "secret": value})
    else:
        typer.echo(value)


@contextmanager
def _redis(data_dir: Path | None, url: str | None) -> Iterator[Redis]:
    """The Redis that the settings name; else that of `kernelscope up`."""
    settings = local_settings(data_dir=data_dir)
    if url:
        _check_here(url, settings)
    if "redis_url" in settings.model_fields_set:
        with connect(settings.redis) as redis:
            yield redis
        return
    elsewhere = os.environ.get("KERNELSCOPE_URL")
    if elsewhere and not url and not _same(elsewhere, settings):
        say(f"keys of the stack in {settings.data_dir}, not of KERNELSCOPE_URL: {elsewhere}")
    else:
        say(f"keys of the stack in {settings.data_dir}")
    with Stack(settings, say).redis_alone() as redis:
        yield redis


def _check_here(url: str, settings: Settings) -> None:
    """Check that the keys of this server can be managed here.

    Raises:
        typer.BadParameter: why not, and what to do.
    """
    if "redis_url" in settings.model_fields_set:
        raise typer.BadParameter(
            "KERNELSCOPE_REDIS_URL already names the Redis that has the keys; leave out --url", param_hint="--url"
        )
    if not _same(url, settings):
        found = running_here(settings)
        here = f"the stack in {settings.data_dir} is {found.url}" if found else f"no stack runs in {settings.data_dir}"
        raise typer.BadParameter(
            f"the keys of {url} are in its Redis, and cannot be managed over HTTP; {here}. On the machine of "
            "that server run `kernelscope keys`; with containers `docker compose exec api python -m kernelscope keys`; "
            "where its Redis can be reached from here, set KERNELSCOPE_REDIS_URL",
            param_hint="--url",
        )


def _same(url: str, settings: Settings) -> bool:
    """Whether this is the stack of the data folder."""
    found = running_here(settings)
    return found is not None and url.rstrip("/").replace("localhost", "127.0.0.1") == found.url
