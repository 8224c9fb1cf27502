"""`kernelscope get | wait | save | delete`: existing jobs, created by `explain --detach` or another program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from kernelscope.client import Client, Job, WaitTimeout
from kernelscope.results import explained, labels_in, labels_of, ranking, save, show, show_errors
from kernelscope.serving import AsJson, Key, Url, remote
from kernelscope.terminal import document, out, plain, progress, say, state

PATIENCE = 10.0  # seconds that a server may be away
MOST_RANKED = 20

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, see `kernelscope jobs`.")]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of jobs, see `kernelscope jobs`.")]


def get(job_id: JobId, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show a job: its status, and the numbers of its finished explanations.

    Exit code 0: it is shown; 1: there is no such job, or no server.

    Example: kernelscope get 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        job = client.job(job_id)
        if as_json:
            document(plain(job)[0])
            return
        say(f"job {job.id}: {state(job)}", out)
        show_errors([job])
        if job.request.explains:
            if job.results:
                show(explained(job, labels_in(job.request)))
        elif job.request.surveys:
            say(f"this job is a survey: `kernelscope surveys follow {job.id}`", out)
        else:
            for one in job.results:
                say(f"image {labels_in(job.request)[job.request.image_of(one.index)]}", out)
                out.print(ranking(job.request, (one.ranking or [])[:MOST_RANKED]))


def wait(
    ids: JobIds,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait at most.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs have ended. Ctrl-C stops the waiting, not the jobs.

    Exit code 0: each has ended with at least one explanation; 1: one has none, or the time is over, or there is no
    such job or server; 130: Ctrl-C.

    Example: kernelscope wait 0123456789abcdef0123456789abcdef
    """
    jobs: list[Job] = []
    with remote(url, key, PATIENCE) as client:
        for job_id in ids:
            jobs.append(_ended(client, job_id, timeout))
            if not as_json:
                say(f"{job_id} {state(jobs[-1])}", out)
                show_errors(jobs[-1:])
        if as_json:
            document(plain(*jobs))
    if not all(job.status.terminal and job.progress.completed > job.failed_items for job in jobs):
        raise typer.Exit(1)


def _ended(client: Client, job_id: str, timeout: float | None) -> Job:
    """The job, once it has ended or the timeout has passed."""
    job = client.job(job_id)
    with progress() as bar:
        task = bar.add_task(state(job), total=1.0)
        try:
            job.wait(
                timeout,
                lambda seen: bar.update(task, description=state(seen), completed=seen.progress.fraction),
            )
        except WaitTimeout as error:
            job.refresh()
            say(str(error))
        except KeyboardInterrupt:
            say(f"the job continues; `kernelscope cancel {job_id}` ends it")
            raise
        bar.update(task, description=state(job), completed=job.progress.fraction)
    return job


def save_(
    ids: JobIds,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", file_okay=False, help="Folder; default: a new one named after the job."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Save every file of every explanation, feature maps and loss curves too.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Save the pictures of jobs, as `explain` does, and their records. Of running jobs, save what is finished.

    Exit code 0: each has at least one picture; 1: one has none, or there is no such job or server.

    Example: kernelscope save 0123456789abcdef0123456789abcdef -o explained
    """
    saved: dict[str, list[str]] = {}
    with remote(url, key, PATIENCE) as client:
        jobs = [client.job(job_id) for job_id in ids]
        for job, labels in zip(jobs, _labels(jobs, apart=output is None), strict=True):
            folder = output or Path(f"{job.request.layer}-{job.id[:8]}")
            folder.mkdir(parents=True, exist_ok=True)
            files = list(save(job, labels, folder, everything=everything))
            record = folder / ("job.json" if len(ids) == 1 or not output else f"job-{job.id[:8]}.json")
            record.write_text(job.model_dump_json(indent=1), encoding="utf-8")
            saved[job.id] = list(map(str, files))
            if not as_json:
                say(f"{job.id}: {len(files)} pictures in {folder}/", out)
            if not job.status.terminal:
                say(f"{job.id} is {job.status}: more pictures will follow")
    if as_json:
        document(saved)
    if not all(saved.values()):
        raise typer.Exit(1)


def _labels(jobs: Sequence[Job], *, apart: bool) -> list[list[str]]:
    """The labels of each job's images, different ones in all jobs unless each has a folder to itself."""
    if apart:
        return [labels_in(job.request) for job in jobs]
    names = [job.request.name_of(number) for job in jobs for number in range(len(job.request.images))]
    labels = iter(labels_of(names))
    return [list(islice(labels, len(job.request.images))) for job in jobs]


def delete(ids: JobIds, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Delete jobs and their pictures permanently; unfinished jobs are cancelled first.

    Exit code 0: they are deleted; 1: there is no such job (those before it are deleted), or no server.

    Example: kernelscope delete 0123456789abcdef0123456789abcdef
    """
    with remote(url, key) as client:
        for job_id in ids:
            client.job(job_id).delete()
            if not as_json:
                say(f"{job_id} is deleted", out)
    if as_json:
        document({"deleted": ids})
