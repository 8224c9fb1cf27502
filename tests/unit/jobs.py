"""Jobs in the record, whose slices are claimed and completed by hand."""

from __future__ import annotations

from shared.jobs import Claim, Transitions
from shared.schemas import ExplainRequest, ItemResult, plan

LEASE = 20.0


def submit(transitions: Transitions, job_id: str = "j", kernels: object = None, lifetime: float = 1e6) -> list[str]:
    """Submit a job, of 20 kernels (two slices) by default; returns its slices."""
    wanted = list(range(20)) if kernels is None else kernels
    fields = {"images": ["0" * 64], "layer": "conv1_1", "kernels": wanted}
    request = ExplainRequest.model_validate(fields)
    announced = transitions.submit(job_id, request, plan(request, 10_000), lifetime)
    return [slice_id for slice_id, _ in announced.slices]


def claimed(transitions: Transitions, slice_id: str) -> Claim:
    """A claim that must succeed."""
    claim = transitions.claim(slice_id)
    assert claim is not None
    return claim


def suspected(transitions: Transitions, slice_id: str) -> bool:
    """Whether the claim of a queued slice is marked as suspected."""
    claim = claimed(transitions, slice_id)
    transitions.release(claim)
    return claim.suspected


def done(claim: Claim, number: int) -> ItemResult:
    """A result of the claim's item of that number."""
    item = claim.items[number]
    return ItemResult.of(item, claim.request, item.kernel if item.kernel is not None else item.rank)


def complete(transitions: Transitions, claim: Claim) -> None:
    """Commit every item and finish."""
    for number in range(len(claim.items)):
        transitions.commit(claim, done(claim, number), {})
    transitions.finish(claim)
