"""Jobs that have ended: out of Redis, whole in the store, read as before, removed with their files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from redis import Redis

from shared.errors import JobExpired, JobNotFound
from shared.jobs import JobFilter, Place, Records, Retention, Transitions, new_id
from shared.jobs.archive import NAME, Dump
from shared.jobs.forms import json_of
from shared.jobs.ids import made_at
from shared.jobs.repair import Repair
from shared.schemas import ExplainRequest, ItemResult, Status, plan
from shared.store import SHARDS, BlobStore

DAY = 86400.0


class Desk:
    """A record and a store, and jobs that are done by hand."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.store = BlobStore(folder.as_uri())
        self.folder = folder
        self.transitions = Transitions(redis)
        self.records = Records(redis, self.store)
        self.retention = Retention(self.transitions, self.records)

    def submit(self, kernels: int = 2, lifetime: float = DAY, key: str | None = None, layer: str = "conv1_1") -> str:
        """A job."""
        job_id = new_id()
        image = self.store.put(job_id, job_id.encode())
        fields = {"images": [image], "layer": layer, "kernels": list(range(kernels))}
        request = ExplainRequest.model_validate(fields)
        return self.transitions.submit(job_id, request, plan(request, 10_000), lifetime, key).job_id

    def finish(self, job_id: str) -> None:
        """All its items succeed."""
        number = 0
        while claim := self.transitions.claim(f"{job_id}:{number}"):
            for item in claim.items:
                blobs = {"optimized.png": self.store.put(job_id, f"{job_id} {item.index}".encode())}
                result = ItemResult.of(item, claim.request, item.kernel)
                self.transitions.commit(claim, result, blobs, f"{job_id} {item.index}")
            self.transitions.finish(claim)
            number += 1

    def done(self, kernels: int = 2, lifetime: float = DAY, key: str | None = None, layer: str = "conv1_1") -> str:
        """A job that has ended."""
        job_id = self.submit(kernels, lifetime, key, layer)
        self.finish(job_id)
        return job_id

    def files(self) -> list[str]:
        """The jobs that have any."""
        return [job for shard in SHARDS for job, _ in self.store.jobs(shard)]


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    """One of the test's own."""
    return Desk(redis, tmp_path)


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


def test_a_redis_that_was_restored_alone_is_told_what_the_store_has(desk: Desk) -> None:
    """Even an empty one, portion by portion; then nothing more is done."""
    jobs = [desk.done() for _ in range(3)]
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    assert repair.round() is repair.round() is None
    desk.retention.archive_ended(10, 0)
    desk.redis.flushdb()
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    reported = [repair.round(-1.0) for _ in range(4)]
    assert reported == [None, None, None, "Redis is older than the object store: 3 finished jobs are listed again"]
    assert repair.round() is None
    assert Repair(desk.redis, desk.store, desk.records.archive).round() is None
    assert [job.id for job in desk.records.page("", JobFilter(), 10)[0]] == jobs[::-1]
    desk.redis.set("ks:clock", time.time() + 2 * DAY)
    assert desk.retention.expire(10) == 3
    assert desk.records.page("", JobFilter(), 10) == ([], None)


def test_a_store_that_was_restored_alone_is_told_of(desk: Desk) -> None:
    """What it lost is listed no more."""
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    kept, lost = desk.done(), desk.done()
    desk.retention.archive_ended(10, 0)
    for _ in range(3):
        repair.round()
    desk.store.remove(lost)
    desk.store.note("state/beat", "1")
    repair = Repair(desk.redis, desk.store, desk.records.archive)
    assert repair.round() == "the object store is older than Redis: 1 finished jobs are lost with their files"
    assert desk.redis.zrange("ks:jobs:", 0, -1) == [f"{kept} succeeded vgg16 conv1_1"]
    assert Repair(desk.redis, desk.store, desk.records.archive).round() is None


def test_ids_tell_when_they_were_made() -> None:
    """To the millisecond, and no two are the same."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    made = made_at(ids[0])
    assert made is not None
    assert abs(made - time.time()) < 60
    assert made_at("0" * 32) is None
    assert made_at("f" * 32) is None
