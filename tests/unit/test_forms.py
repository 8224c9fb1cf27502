"""Data of released versions in Redis and in the store (tests/forms), read and migrated by this version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from shared.errors import JobExpired
from shared.jobs import JobFilter, Records, Retention, Transitions
from shared.schemas import ExplainRequest, ItemResult, plan
from shared.store import BlobStore
from tests.forms import FORM_1, form1, load

NEW = ("fraction", "seconds_left")  # of `progress`, since form 1
ENDED = ("a" * 32, "b" * 32, "c" * 32)
CREATED = 1_795_000_000.0


def reported(records: Records, job_id: str) -> dict[str, Any]:
    """A job as returned by version 1, without new fields."""
    job = records.whole(job_id).model_dump(mode="json", exclude={"queue_seconds", "waiting_for"})
    job["progress"] = {name: value for name, value in job["progress"].items() if name not in NEW}
    job["links"] = {name: link for name, link in job["links"].items() if name not in {"results", "retry"}}
    return job


def test_form_1_is_read_and_moved(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are returned unchanged, before and after archiving; files are found, and removed with their jobs."""
    form = json.loads(FORM_1.read_text())
    load(form, redis, tmp_path)
    store = BlobStore(tmp_path.as_uri())
    records = Records(redis, store)
    retention = Retention(Transitions(redis), records)
    redis.set("ks:clock", CREATED + 60)
    assert {job_id: reported(records, job_id) for job_id in form["told"]} == form["told"]
    assert store.get("a" * 32, records.result("a" * 32, 1)[2]["optimized.png"]) == b"a 1"
    assert records.archive.migration.begin() == len(ENDED)
    assert retention.archive_ended(10) == len(ENDED)
    assert {job_id: reported(records, job_id) for job_id in form["told"]} == form["told"]
    assert [job.id[0] for job in records.page("", JobFilter(), 10)[0]] == ["e", "d", "c", "a"]
    assert store.get("a" * 32, "drawn-0-panel.png") == b"a panel"
    assert records.log_of("a" * 32) == [
        *map("status {}".format, ["queued", "running"]),
        "result 0",
        "result 1",
        "status succeeded",
    ]
    image = records.head("a" * 32).request.images[0]
    assert records.image(image, "") in form["told"]
    for job_id in form["told"]:
        retention.remove(job_id)
        with pytest.raises(JobExpired):
            records.job(job_id)
    retention.remove_files(10, 0)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith("images/")} <= {"blobs/identity"}
    held = [key for key in redis.keys("ks:*") if key.startswith(("ks:blob:", "ks:image:", "ks:job:", "ks:slice:"))]
    assert held == []


def test_the_version_before_reads_live_jobs_of_this_one(redis: Redis, tmp_path: Path) -> None:
    """Old and new processes run side by side during an upgrade; only new ones can read archived jobs."""
    records = Records(redis, BlobStore(tmp_path.as_uri()))
    transitions = Transitions(redis)
    request = ExplainRequest(images=["0" * 64], names=["cat.jpg"], layer="conv3_3", kernels=[1, 2, 3])
    for name in ("waiting", "running", "cancelled"):
        transitions.submit(name, request, plan(request, 10), 1000, name)
        if name != "waiting":
            claim = transitions.claim(f"{name}:0")
            assert claim
            result = ItemResult.of(claim.items[0], request, 1)
            transitions.commit(claim, result, {"optimized.png": "f" * 64})
            transitions.renew(claim, {"iteration": 3, "budget": 10, "loss": 0.5, "share": 0.6, "items": []})
    transitions.cancel("cancelled")
    read = redis.register_script(form1.JOB)
    for name in ("waiting", "running", "cancelled"):
        old = form1.job_of(name, read(*form1.keys_of(name))).model_dump(mode="json")
        new = reported(records, name)
        for job in (old, new):
            job["progress"] = {key: value for key, value in job["progress"].items() if key not in NEW}
            job["links"] = {key: link for key, link in job["links"].items() if key in form1.LINKS}
        assert {key: old[key] for key in new} == new
