"""Jobs that have ended are moved out of Redis into the store, and read as before."""

from __future__ import annotations

import json
import time

import pytest

from shared.errors import JobNotFound
from shared.jobs import JobFilter, Place, new_id
from shared.jobs.archive import NAME, Dump
from shared.jobs.forms import json_of
from shared.jobs.ids import made_at
from shared.schemas import Status
from tests.unit.ended_jobs import Desk


def test_an_archived_job_is_read_as_before(desk: Desk) -> None:
    """Whole, listed, its results by pages, its files; and Redis has but a line of it."""
    job_id = desk.done(20)
    before = desk.records.whole(job_id), desk.records.result(job_id, 3), desk.records.page("", JobFilter(), 5)
    assert desk.retention.archive_ended(10, 60) == 0  # its readers find it in Redis for a while
    assert desk.retention.archive_ended(10, 0) == 1
    assert desk.records.archive.read(job_id) is not None
    after = desk.records.whole(job_id), desk.records.result(job_id, 3), desk.records.page("", JobFilter(), 5)
    assert after == before
    assert desk.records.job(job_id) == before[0]
    page, following = desk.records.page_of_results(job_id, 15, 4)
    assert ([result.index for result in page], following) == ([15, 16, 17, 18], 19)
    assert [key for key in desk.redis.keys("ks:*") if job_id in key and not key.startswith("ks:same:")] == []
    assert desk.redis.zrange("ks:jobs:", 0, -1) == [f"{job_id} succeeded vgg16 conv1_1"]
    with pytest.raises(JobNotFound):
        desk.records.job(job_id, "somebody else")


def test_a_job_of_many_items_is_told_without_them(desk: Desk) -> None:
    """Alive or archived; page by page they are all there."""
    job_id = desk.done(100)
    for _ in range(2):
        job = desk.records.job(job_id)
        assert job.results is None
        assert job.status is Status.SUCCEEDED
        seen, start = list[int](), 0
        while start is not None:
            page, start = desk.records.page_of_results(job_id, start, 30)  # type: ignore[assignment]
            seen += [result.index for result in page]
        assert seen == list(range(100))
        desk.retention.archive_ended(10, 0)


def test_jobs_are_listed_wherever_they_are(desk: Desk) -> None:
    """Newest first, by pages, filtered; what cannot be read is left out."""
    jobs = [desk.done(1, layer=layer) for layer in ("conv1_1", "conv1_2") * 3]
    desk.retention.archive_ended(4, 0)
    found, after = list[str](), None
    while True:
        page, after = desk.records.page("", JobFilter(), 2, after)
        found += [job.id for job in page]
        if after is None:
            break
    assert found == jobs[::-1]
    page, _ = desk.records.page("", JobFilter(layer="conv1_2"), 10)
    assert [job.id for job in page] == jobs[1::2][::-1]
    assert desk.records.page("", JobFilter(status=Status.FAILED), 10) == ([], None)
    desk.store.remove(jobs[0])
    assert [job.id for job in desk.records.page("", JobFilter(), 10)[0]] == jobs[:0:-1]


def test_cursors_are_places(desk: Desk) -> None:
    """A job that is archived between two pages is listed once."""
    jobs = [desk.done(1) for _ in range(4)]
    first, after = desk.records.page("", JobFilter(), 2)
    desk.retention.archive_ended(10, 0)
    second, _ = desk.records.page("", JobFilter(), 2, after)
    assert [job.id for job in (*first, *second)] == jobs[::-1]
    assert isinstance(after, Place)


def test_an_image_is_found_where_its_owner_sent_it_last(desk: Desk) -> None:
    """In Redis for a day, then in the archive; not by others; not once its job is gone."""
    job_id = desk.done()
    image = desk.records.head(job_id).request.images[0]
    assert desk.records.image(image, "") == job_id
    assert desk.records.image(image, "else") is None
    desk.retention.archive_ended(10, 0)
    desk.redis.delete(f"ks:held::{image}")
    assert desk.records.image(image, "") == job_id
    desk.retention.remove(job_id)
    desk.retention.remove_files(10, 0)
    assert desk.records.image(image, "") is None


def test_the_same_work_is_found_in_the_archive(desk: Desk) -> None:
    """With the job in whose folder its files are."""
    job_id = desk.done()
    desk.retention.archive_ended(10, 0)
    found = desk.records.same(f"{job_id} 1")
    assert found is not None
    assert (found[0], found[1].index) == (job_id, 1)
    assert desk.store.has(job_id, found[2]["optimized.png"])
    desk.retention.remove(job_id)
    assert desk.records.same(f"{job_id} 1") is None  # at once, though its files are not swept yet


def test_what_has_not_ended_is_not_archived(desk: Desk) -> None:
    """Nor what was brought back since."""
    job_id = desk.submit()
    assert not desk.records.archive.put(job_id)
    desk.finish(job_id)
    before = desk.records.whole(job_id)
    assert desk.records.archive.put(job_id)
    assert desk.records.archive.restore(job_id)
    assert not desk.records.archive.restore(job_id)
    assert desk.records.whole(job_id) == before
    assert desk.redis.zrange("ks:jobs:", 0, -1) == [job_id]
    assert desk.retention.archive_ended(10, 0) == 1


def test_a_machine_that_slept_archives_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and writing: what it has read may be older than what another has archived."""
    job_id = desk.done()
    with monkeypatch.context() as slept:
        slept.setattr("shared.jobs.archive.STALE_SECONDS", -1)
        assert not desk.records.archive.put(job_id)
    assert not desk.store.has(job_id, NAME)
    assert desk.retention.archive_ended(10, 0) == 1
    assert desk.store.has(job_id, NAME)


def test_a_dump_of_a_later_version_is_read() -> None:
    """What is not known is passed over."""
    dump = Dump({"status": "succeeded", "new": "field"}, {0: "text"}, ["status queued"], [])
    assert Dump.unpacked(dump.packed()) == dump
    assert NAME == "record"


def test_results_are_told_unparsed_as_parsed(desk: Desk) -> None:
    """The same names and values, under the path that the API is served under."""
    job_id = desk.done()
    text = desk.redis.hget(f"ks:job:{job_id}:results", "1")
    reported = json.loads(json_of(job_id, 1, text, "/root"))
    (_, result) = desk.records.whole(job_id).results
    assert reported == json.loads(result.under("/root").model_dump_json())


def test_ids_tell_when_they_were_made() -> None:
    """To the millisecond, and no two are the same."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    made = made_at(ids[0])
    assert made is not None
    assert abs(made - time.time()) < 60
    assert made_at("0" * 32) is None
    assert made_at("f" * 32) is None
