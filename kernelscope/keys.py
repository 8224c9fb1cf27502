"""`kernelscope keys`: make, list and revoke API keys; a running server heeds it at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from redis import Redis
from rich.console import Console
from rich.table import Table

from kernelscope.stack import Stack
from shared.jobs import connect
from shared.keys import NAME, ApiKeys, rotate_webhook_secret, webhook_secrets
from shared.settings import Settings, checked_rate

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
console = Console(highlight=False)

DataDir = Annotated[
    Path | None, typer.Option(help="That of `kernelscope up`, where its Redis is the one that is meant.")
]


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose jobs are made with it; several keys may have one name.")],
    rate: Annotated[str | None, typer.Option(help="Requests that it may send, `100/second`.")] = None,
    max_open: Annotated[int | None, typer.Option(min=1, help="Parts of jobs that it may have unfinished.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, once: only its SHA-256 is kept.

    Example: kernelscope keys add lab --rate 100/second
    """
    if not re.fullmatch(NAME, name):
        raise typer.BadParameter(f"{name!r}: letters, digits, '.', '_' and '-', at most 64", param_hint="NAME")
    try:
        rate = checked_rate(rate) if rate else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rate") from None
    with _redis(data_dir) as redis:
        typer.echo(ApiKeys(redis).add(name, rate, max_open))
    Console(stderr=True).print("keep it: it cannot be shown again; send it as `Authorization: Bearer …`")


@keys.command("list")
def listed(data_dir: DataDir = None) -> None:
    """Show every key that was made, but for the keys themselves.

    Example: kernelscope keys list
    """
    with _redis(data_dir) as redis:
        found = ApiKeys(redis).all()
    if not found:
        console.print("no keys; `kernelscope keys add NAME` makes one")
        return
    table = Table("id", "name", "made", "revoked", "rate", "parts of jobs", box=None)
    for key in found:
        revoked = f"{key.revoked_at:%F %T}" if key.revoked_at else ""
        table.add_row(key.id, key.name, f"{key.created_at:%F %T}", revoked, key.rate, str(key.max_open or ""))
    console.print(table)


@keys.command()
def revoke(
    which: Annotated[str, typer.Argument(help="A key's id, or a name: then all of its keys.")], data_dir: DataDir = None
) -> None:
    """End a key, or all keys of a name: they are refused from now on, and so are their sessions.

    Example: kernelscope keys revoke lab
    """
    with _redis(data_dir) as redis:
        ended = ApiKeys(redis).revoke(which)
    if not ended:
        console.print(f"no key with the id or name {which} is in force; `kernelscope keys list` shows them")
        raise typer.Exit(1)
    for key in ended:
        console.print(f"revoked {key.id} ({key.name})")


@keys.command()
def secret(
    name: Annotated[str, typer.Argument(help="Whose webhooks; nothing where the server has no keys.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Show what the webhooks of this name's jobs are signed with (Standard Webhooks).

    Example: kernelscope keys secret lab
    """
    with _redis(data_dir) as redis:
        typer.echo(webhook_secrets(redis, name).secret)


@keys.command("rotate-webhook-secret")
def rotate(
    name: Annotated[str, typer.Argument(help="Whose webhooks; nothing where the server has no keys.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Give the webhooks of this name's jobs a new secret and print it; for a day they are signed with both.

    Example: kernelscope keys rotate-webhook-secret lab
    """
    with _redis(data_dir) as redis:
        typer.echo(rotate_webhook_secret(redis, name).secret)
    Console(stderr=True).print("messages are signed with the old secret as well for a day")


@contextmanager
def _redis(data_dir: Path | None) -> Iterator[Redis]:
    """The Redis that the settings name; else that of `kernelscope up`."""
    settings = Settings(data_dir=data_dir) if data_dir else Settings()
    if "redis_url" in settings.model_fields_set:
        with connect(settings.redis) as redis:
            yield redis
    else:
        with Stack(settings, console.print).redis_alone() as redis:
            yield redis
