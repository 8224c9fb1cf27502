"""Which slices a worker takes, and when."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.jobs import Claim, Next
from shared.schemas import ExplainRequest
from shared.workers import NetworkState
from worker.jobs import admission
from worker.jobs.admission import BulkSlots, QueueOrder, SliceAdmission

PLAIN, SUSPECT, OTHER = "vgg16 conv3_3", "vgg16 conv3_3 suspected", "vgg19 conv5_1"
REQUEST = ExplainRequest(layer="conv3_3", kernels=[1], images=["0" * 64])


def states() -> dict[str, NetworkState]:
    """The state of VGG-16 up to a layer."""
    return {"vgg16": NetworkState(available=True, reason="", layers=["conv3_3"])}


def offered(*buckets: str) -> Callable[[Callable[[str], bool]], Next]:
    """A queue with a slice in each of these buckets."""

    def claim(runs: Callable[[str], bool]) -> Next:
        taken = next(filter(runs, buckets), None)
        if taken is None:
            return Next(None, len(buckets), 0)
        found = Claim("j:0", "j", "token", 1, [], REQUEST, 0.0, "interactive", "", suspected=taken == SUSPECT)
        return Next(found, len(buckets) - 1, 0)

    return claim


def test_slices_that_are_not_suspected_never_wait() -> None:
    """It runs beside others, but a second suspect is skipped until the first has ended."""
    gate = SliceAdmission(states().get)
    with gate.enter(offered(SUSPECT)) as first:
        assert first.claim is not None
        with gate.enter(offered(SUSPECT, PLAIN)) as second, gate.enter(offered(SUSPECT)) as third:
            assert second.claim is not None
            assert not second.claim.suspected
            assert third == Next(None, 1, 0)
    with gate.enter(offered(SUSPECT)) as again:
        assert again.claim is not None


def test_a_suspect_that_raises_leaves_its_place() -> None:
    """However it ends."""
    gate = SliceAdmission(states().get)
    with pytest.raises(ZeroDivisionError), gate.enter(offered(SUSPECT)):
        _ = 1 / 0
    with gate.enter(offered(SUSPECT)) as again:
        assert again.claim is not None


def test_what_the_worker_lacks_is_passed_over() -> None:
    """A network, or a layer of a network that it has."""
    gate = SliceAdmission(states().get)
    with gate.enter(offered(OTHER, "vgg16 conv4_1", PLAIN)) as found:
        assert found.claim is not None
    with gate.enter(offered(OTHER, "vgg16 conv4_1")) as found:
        assert found == Next(None, 2, 0)
    assert gate.able("vgg16", "conv3_3")
    assert not gate.able("vgg19", "conv5_1")


def test_big_jobs_are_polled_while_there_is_a_place_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small jobs are always polled, each queue in turn."""
    places = BulkSlots()
    monkeypatch.setattr(admission, "bulk", places)
    turns = QueueOrder(["interactive", "bulk"])  # type: ignore[no-untyped-call]
    assert sorted(turns.consume(2)) == ["bulk", "interactive"]
    with places.occupied_by("interactive"):
        assert sorted(turns.consume(2)) == ["bulk", "interactive"]
    with places.occupied_by("bulk"):
        assert turns.consume(2) == ["interactive"]
    turns.rotate("interactive")  # type: ignore[no-untyped-call]
    assert turns.consume(2) == ["bulk", "interactive"]
