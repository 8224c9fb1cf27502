"""Errors about jobs and their results.

The docstring of a class is its page at `/problems/<slug>`.
"""

from __future__ import annotations

from shared.errors.base import KernelscopeError


class NotANumber(KernelscopeError):
    """The solver met a value that is not finite and could not recover."""

    status = 500
    title = "Not a number"


class DeviceOutOfMemory(KernelscopeError):
    """A single problem does not fit into the device's memory."""

    status = 500
    title = "Device out of memory"


class AttemptsExhausted(KernelscopeError):
    """The worker died or stopped responding at every attempt; there are no more retries."""

    status = 500
    title = "Attempts exhausted"


class DeadlinePassed(KernelscopeError):
    """The job's `deadline_s` passed before this item started; items that were running returned what they had."""

    status = 504
    title = "Deadline passed"


class JobEnded(KernelscopeError):
    """The job has succeeded, failed or been cancelled, so it cannot be cancelled any more."""

    status = 409
    title = "Job ended"


class NothingToRetry(KernelscopeError):
    """Only failed items of a job that has ended can be retried: this job has none, still runs, or was cancelled."""

    status = 409
    title = "Nothing to retry"


class JobNotFound(KernelscopeError):
    """There is no job with this id."""

    status = 404
    title = "Job not found"


class JobExpired(KernelscopeError):
    """The job was deleted, or its retention time has passed and it was removed with its pictures."""

    status = 410
    title = "Job removed"


class ArtifactNotFound(KernelscopeError):
    """The job has no such artifact, or not yet."""

    status = 404
    title = "Artifact not found"


class DataSetNotFound(KernelscopeError):
    """There is no data set with this id."""

    status = 404
    title = "Data set not found"


class DataSetFull(KernelscopeError):
    """The limit on images in a data set, or on your data sets or surveys, is reached. Delete some first."""

    status = 409
    title = "No room for more"


class SurveyNotFound(KernelscopeError):
    """There is no survey with this id, or none of this layer that you may read. `POST /surveys` starts one."""

    status = 404
    title = "Survey not found"
