"""`kernelscope models | jobs | cancel | retry`: what a running server has and does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape

from kernelscope.client import Client
from kernelscope.client.notebook import kernels_of
from kernelscope.serving import AsJson, Key, Url
from kernelscope.terminal import out, state, table
from shared.catalogue import ModelInfo
from shared.schemas import JobSummary, Status

PATIENCE = 2.0  # seconds that a server may be away: somebody sits before the terminal
AVAILABLE = {True: "yes", False: "no", None: "?"}


def models(
    name: Annotated[str | None, typer.Argument(help="Of a network: then its layers are listed.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
    *,
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node that has maps.")] = False,
) -> None:
    """List the networks that a server can explain, or the layers of one; and why not, where it cannot.

    Example: kernelscope models

    Example: kernelscope models vgg_mini
    """
    with Client(url, key, patience=PATIENCE) as client:
        found = [client.model(name)] if name else client.models()
    if as_json:
        shown = [json.loads(one.model_dump_json()) for one in found]
        typer.echo(json.dumps(shown[0] if name else shown, indent=1))
    elif name:
        _layers(found[0], every=nodes)
    else:
        made = table("", "network", "available", "", right=())
        for one in found:
            made.add_row(one.name, AVAILABLE[one.available], one.reason)
        out.print(made)
    if not as_json:
        for line in dict.fromkeys(line for one in found for line in one.weights_refused):
            out.print(f"not used: {escape(line)}", soft_wrap=True)


def _layers(network: ModelInfo, *, every: bool) -> None:
    numbers = ("kernels", "map", "sees", "stride")
    made = table(f"{network.title}: {network.reason}", "block", "layer", "node", *numbers, "available", right=numbers)
    shown = [*network.layers, *(network.nodes if every else [])]
    block = None
    for one in sorted(shown, key=lambda one: [known.block for known in shown].index(one.block)):
        size, sees = f"{one.height} × {one.width}", f"{one.receptive_field} px"
        place, block = one.block if one.block != block else "", one.block
        row = (place, one.name, one.node, str(one.kernels), size, sees, str(one.stride), AVAILABLE[one.available])
        made.add_row(*row)
    out.print(made)
    if network.nodes and not every:
        out.print(f"{len(network.nodes)} other nodes have maps too: --nodes", soft_wrap=True)
    if network.preprocessing:
        out.print(f"{network.architecture}, fed {network.preprocessing}", soft_wrap=True)


def jobs(
    status: Annotated[Status | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List a server's jobs, newest first.

    Example: kernelscope jobs --limit 5

    Example: kernelscope jobs --status succeeded --json
    """
    with Client(url, key, patience=PATIENCE) as client:
        found = list(islice(client.jobs(status=status), limit))
    if as_json:
        typer.echo(json.dumps([json.loads(one.model_dump_json()) for one in found], indent=1))
    elif not found:
        out.print("no jobs; `kernelscope explain` makes one")
    else:
        made = table("", "job", "made", "what", "state")
        for one in found:
            made.add_row(one.id, f"{one.created_at:%F %T}", _what(one), state(one))
        out.print(made)


def _what(job: JobSummary) -> str:
    kernels = job.request.kernels
    if not kernels:
        return f"ranks {job.request.layer} of {job.request.model}"
    return f"{kernels_of(job.request)} of {job.request.layer} ({job.request.model})"


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="JOB…", help="As `kernelscope jobs` lists them.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """End jobs that are queued or running; what is finished of them stays.

    Example: kernelscope cancel 0123456789abcdef0123456789abcdef
    """
    with Client(url, key, patience=PATIENCE) as client:
        for line in _cancelled(client, ids):
            out.print(line)


def _cancelled(client: Client, ids: Sequence[str]) -> list[str]:
    lines = []
    for job_id in ids:
        job = client.job(job_id)
        if job.status.terminal:
            lines.append(f"{job_id} had {job.status} already")
        else:
            job.cancel()
            lines.append(f"{job_id} cancelled: {job.progress.completed} of its explanations were finished, and stay")
    return lines


def retry(
    ids: Annotated[list[str], typer.Argument(metavar="JOB…", help="As `kernelscope jobs` lists them.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Run the failed explanations of jobs that have ended again; what has succeeded stays.

    Example: kernelscope retry 0123456789abcdef0123456789abcdef
    """
    with Client(url, key, patience=PATIENCE) as client:
        for job_id in ids:
            job = client.job(job_id)
            failed = job.failed_items
            job.retry()
            out.print(f"{job_id}: {failed} failed explanations run again")
