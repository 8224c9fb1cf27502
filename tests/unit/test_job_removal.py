"""Jobs that are deleted or have expired are gone at once, and their files soon."""

from __future__ import annotations

import pytest

from shared.errors import JobExpired
from shared.jobs import JobFilter, new_id
from shared.schemas import Status
from shared.store import SHARDS
from tests.unit.ended_jobs import DAY, Desk


@pytest.mark.parametrize("archived", [False, True])
def test_a_deleted_job_is_gone_at_once_and_its_files_soon(desk: Desk, archived: bool) -> None:  # noqa: FBT001
    """Nothing is left of it but the word of it."""
    job_id = desk.done(key="key")
    other = desk.done()
    if archived:
        assert desk.retention.archive_ended(10, 0) == 2
    desk.retention.remove(job_id)
    with pytest.raises(JobExpired):
        desk.records.job(job_id)
    assert [job.id for job in desk.records.page("", JobFilter(), 10)[0]] == [other]
    assert desk.retention.remove_files(10, 60) == 0  # a worker may have a file in hand
    assert desk.retention.remove_files(10, 0) == 1
    assert desk.files() == [other]
    desk.retention.remove(job_id)
    assert desk.retention.remove_files(10, 0) == 0
    assert desk.submit(key="key") not in {job_id, other}  # the key makes another job
    desk.redis.delete(f"ks:gone:{job_id}")
    with pytest.raises(JobExpired, match="Send the request again"):
        desk.records.job(job_id)


def test_jobs_expire_wherever_they_are(desk: Desk) -> None:
    """Whether they have ended or not; before their hour is swept they are gone all the same."""
    waiting, ended, archived, young = (desk.submit(lifetime=-1), *(desk.done(lifetime=at) for at in (-1, -7300, DAY)))
    desk.redis.zrem("ks:finished", ended)
    assert desk.retention.archive_ended(10, 0) == 2
    with pytest.raises(JobExpired):
        desk.records.job(archived)
    assert desk.retention.expire(10) == 3
    assert desk.retention.expire(10) == 0
    for job_id in (waiting, ended, archived):
        with pytest.raises(JobExpired):
            desk.records.job(job_id)
    assert desk.retention.remove_files(10, 0) == 3
    assert desk.files() == [young]
    assert desk.redis.keys("ks:gone:*") == []  # their ids say how old they are


def test_the_walk_finds_what_no_record_knows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a refused request, say; not those of jobs that are there, nor of one that may be being made."""
    alive, archived, lost = desk.submit(), desk.done(), new_id()
    desk.retention.archive_ended(10, 0)
    desk.store.put(lost, b"x")
    assert sum(map(desk.retention.remove_orphans, SHARDS)) == 0
    monkeypatch.setattr("shared.jobs.retention.ORPHAN_AFTER", -1.0)
    assert sum(map(desk.retention.remove_orphans, SHARDS)) == 1
    assert set(desk.files()) == {alive, archived}


def test_a_late_file_of_a_job_that_is_gone_is_swept(desk: Desk) -> None:
    """A worker that did not know puts one more; of a job that is there, nothing is swept."""
    job_id, kept = desk.done(), desk.done()
    desk.retention.archive_ended(1, 0)
    desk.retention.remove(job_id)
    desk.retention.remove_files(10, 0)
    desk.store.put(job_id, b"late")
    for each in (job_id, kept):
        desk.records.schedule_cleanup(each)
    assert desk.retention.remove_files(10, 0) == 1
    assert desk.files() == [kept]


def test_a_job_that_was_taken_after_all_is_not_swept(desk: Desk) -> None:
    """Redis's answer did not arrive, and its files were taken for nobody's; by now it has run and is archived."""
    job_id = desk.submit()
    desk.redis.zadd("ks:late", {job_id: 1})
    desk.finish(job_id)
    desk.retention.archive_ended(10, 0)
    assert desk.retention.remove_files(10, 0) == 1
    assert desk.records.whole(job_id).status is Status.SUCCEEDED
    assert desk.files() == [job_id]
