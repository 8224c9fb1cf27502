"""`kernelscope models | jobs | cancel | retry`: the networks and jobs of a running server."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from kernelscope.client import Client
from kernelscope.client.notebook import kernels_of
from kernelscope.serving import AsJson, Key, Url, remote
from kernelscope.terminal import document, out, plain, say, state, table
from shared.catalogue import ModelInfo
from shared.schemas import JobSummary, Status

AVAILABLE = {True: "yes", False: "no", None: "?"}


def models(
    name: Annotated[str | None, typer.Argument(help="A network, to list its layers.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
    *,
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node that has feature maps.")] = False,
) -> None:
    """List the networks that a server can explain, with the reason where it cannot; or the layers of one network.

    Exit code 0: they are listed; 1: there is no such network, or no server.

    Example: kernelscope models

    Example: kernelscope models vgg_mini
    """
    with remote(url, key) as client:
        found = [client.model(name)] if name else client.models()
    if as_json:
        shown = plain(*found)
        document(shown[0] if name else shown)
    elif name:
        _layers(found[0], every=nodes)
    else:
        made = table("", "network", "available", "", right=())
        for one in found:
            made.add_row(one.name, AVAILABLE[one.available], one.reason)
        out.print(made)
    if not as_json:
        for line in dict.fromkeys(line for one in found for line in one.weights_refused):
            say(f"not used: {line}", out)


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
        say(f"{len(network.nodes)} other nodes have feature maps too; --nodes lists them", out)
    if network.preprocessing:
        say(f"{network.architecture}, input normalised: {network.preprocessing}", out)


def jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many.")] = 20,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List a server's jobs, newest first.

    Exit code 0: they are listed; 1: there is no server.

    Example: kernelscope jobs --limit 5

    Example: kernelscope jobs --status succeeded --json
    """
    with remote(url, key) as client:
        found = list(islice(client.jobs(status=status), limit))
    if as_json:
        document(plain(*found))
    elif not found:
        out.print("no jobs; `kernelscope explain` creates one")
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
    ids: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of jobs, see `kernelscope jobs`.")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs that are queued or running; finished explanations are kept.

    Exit code 0: all of them have ended; 1: there is no such job, or no server.

    Example: kernelscope cancel 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        found = [_cancelled(client, job_id, quiet=as_json) for job_id in ids]
    if as_json:
        document(found)


def _cancelled(client: Client, job_id: str, *, quiet: bool) -> dict[str, Any]:
    job = client.job(job_id)
    if job.status.terminal:
        line = f"{job_id} had already ended: {job.status}"
    else:
        job.cancel()
        line = f"{job_id} cancelled; {job.progress.completed} finished explanations are kept"
    if not quiet:
        say(line, out)
    return {"id": job_id, "status": job.status, "completed": job.progress.completed}


def retry(
    ids: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of jobs, see `kernelscope jobs`.")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Run failed explanations of jobs again, once the jobs have ended; others are kept.

    Exit code 0: they run again; 1: a job has no failed explanation, or there is no such job or no server.

    Example: kernelscope retry 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        found = [_retried(client, job_id, quiet=as_json) for job_id in ids]
    if as_json:
        document(found)


def _retried(client: Client, job_id: str, *, quiet: bool) -> dict[str, Any]:
    job = client.job(job_id)
    failed = job.failed_items
    job.retry()
    if not quiet:
        say(f"{job_id}: {failed} failed explanations are run again", out)
    return {"id": job_id, "retried": failed}
