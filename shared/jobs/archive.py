"""Jobs that have ended: each is one object of the store. Redis keeps a line in its owner's list, and when it goes.

The object is `record` in the job's folder: the record, then what else there is of the job, each compressed, so that a
list reads no results. It is written before the job leaves Redis, which takes it as it was written or not at all.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Self

from redis import Redis

from shared.clock import now
from shared.connection import redis_errors
from shared.jobs.forms import FORM, Record, Texts, found_of
from shared.jobs.migration import Migration
from shared.jobs.scripts import script
from shared.schemas import ExplainRequest, Status
from shared.store import BlobStore

NAME = "record"  # of the object in the job's folder
HEAD_BYTES = 4096  # that are read of it for a list; nearly all heads are smaller
SIZE = struct.Struct(">I")
KEPT_BYTES = 16_000_000  # of archived jobs that were read last, uncompressed
HOUR = 3600
STALE_SECONDS = 5.0  # after which a job that was read may have been run again, and archived by somebody else
EXPIRING = "ks:expiring"  # sorted set: where the jobs are noted that expire within an hour, by the hour
SEPARATOR = " "
REMOVED = "ks:removed"  # sorted set: job → when it was removed, whose files are still to be swept
LATE = "ks:late"  # the same of jobs that were gone, or never came to be, when a file was written for them


@dataclass(frozen=True)
class Dump:
    """All that there is of an ended job but its files."""

    record: Record
    results: Texts = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    webhook: list[str] = field(default_factory=list)

    def packed(self) -> bytes:
        """As it is stored: the length of the first part, and the two parts."""
        head = zlib.compress(json.dumps(dict(self.record)).encode())
        rest = {"results": self.results, "log": self.log, "webhook": self.webhook}
        return SIZE.pack(len(head)) + head + zlib.compress(json.dumps(rest).encode())

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """The same, read. What a later version has added is passed over."""
        (length,) = SIZE.unpack_from(data)
        record: Record = json.loads(zlib.decompress(data[SIZE.size : SIZE.size + length]))
        rest: dict[str, Any] = json.loads(zlib.decompress(data[SIZE.size + length :]))
        results = {int(index): text for index, text in rest["results"].items()}
        return cls(record, results, rest.get("log", []), rest.get("webhook", []))


@dataclass(frozen=True)
class _Kept:
    """What was read last, and the store's tag of it: a job that was retried is archived anew."""

    dump: Dump
    tag: str | None

    @property
    def size(self) -> int:
        return sum(map(len, self.dump.results.values())) + 4096


def line_of(job_id: str, record: Record) -> str:
    """What its owner's list says of an ended job: all that jobs are chosen by."""
    request = ExplainRequest.model_validate_json(record["request"])
    return SEPARATOR.join((job_id, record["status"], request.model, request.layer))


class Archive:
    """Moves jobs that have ended out of Redis, and reads them there.

    Args:
        redis: a client that decodes responses.
    """

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self.redis = redis
        self.store = store
        self.migration = Migration(redis, store)
        self._whole = script(redis, "dump")
        self._forget = script(redis, "archive")
        self._restore = script(redis, "restore")
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = Lock()

    def put(self, job_id: str) -> bool:
        """Move an ended job to the store. False where it is not there, has not ended, or was read too long ago."""
        begin = time.monotonic()
        dump = self._dump(job_id)
        if dump is None or not Status(dump.record["status"]).terminal:
            return False
        if "v" not in dump.record:
            dump = replace(dump, log=self.migration.log_of(job_id) + dump.log)
            self.migration.adopt(job_id)
        dump = replace(dump, record={**dump.record, "v": str(FORM)})
        if time.monotonic() - begin > STALE_SECONDS:  # this machine slept: it would write over what is newer
            return False
        self.store.put(job_id, dump.packed(), NAME)
        self._note_images(job_id, dump.record)
        record = dump.record
        entry = SEPARATOR.join((job_id, record["created_at"], record.get("owner", "")))
        arguments = (job_id, record["finished_at"], line_of(job_id, record), _expiring(record), entry)
        with redis_errors():
            if self._forget(keys=[f"ks:job:{job_id}"], args=arguments):
                return True
            gone = not self.redis.exists(f"ks:job:{job_id}")
            if gone and self.redis.zscore(f"ks:jobs:{record.get('owner', '')}", arguments[2]) is None:
                # It was removed, and perhaps swept, before this was written.
                self.redis.zadd(REMOVED, {job_id: now(self.redis)})
            return False

    def restore(self, job_id: str) -> bool:
        """Bring an archived job back into Redis, as it was. False where there is none, or it is there."""
        dump = self.read(job_id)
        if dump is None:
            return False
        record = dict(dump.record)
        results = {str(index): text for index, text in dump.results.items()}
        parts = [json.dumps(part) for part in (record, results, dump.log, dump.webhook)]
        with redis_errors():
            return bool(self._restore(keys=[f"ks:job:{job_id}"], args=[job_id, *parts]))

    def list_again(self, job_id: str) -> bool:
        """Put an archived job on its owner's list, and on that of what expires. False where Redis knows of it."""
        record = self.head(job_id)
        if record is None:
            return False
        owner, created = record.get("owner", ""), record["created_at"]
        with redis_errors():
            if self.redis.exists(f"ks:job:{job_id}") or self.redis.exists(f"ks:gone:{job_id}"):
                return False
            if not self.redis.zadd(f"ks:jobs:{owner}", {line_of(job_id, record): float(created)}, nx=True):
                return False
            self.redis.sadd("ks:owners", owner)
            self.redis.rpush(_expiring(record), SEPARATOR.join((job_id, created, owner)))
            self.redis.zadd(EXPIRING, {_expiring(record): float(record["expires_at"]) // HOUR})
        return True

    def head(self, job_id: str) -> Record | None:
        """The record of an archived job, without its results; None where there is none."""
        data = self.store.begin(job_id, NAME, HEAD_BYTES)
        if data is None:
            return None
        (length,) = SIZE.unpack_from(data)
        if SIZE.size + length > len(data):
            data = self.store.begin(job_id, NAME, SIZE.size + length)
            if data is None or SIZE.unpack_from(data)[0] != length:  # removed, or written anew, at this moment
                return self.head(job_id)
        record: Record = json.loads(zlib.decompress(data[SIZE.size : SIZE.size + length]))
        return record

    def read(self, job_id: str) -> Dump | None:
        """All of an archived job; None where there is none."""
        with self._lock:
            kept = self._kept.get(job_id)
        found = self.store.unless(job_id, NAME, kept.tag if kept else None)
        if found is None:
            return None
        data, tag = found
        if data is None and kept:
            return kept.dump
        dump = Dump.unpacked(data or b"")
        self._keep(job_id, _Kept(dump, tag))
        return dump

    def files(self, job_id: str) -> Iterator[str]:
        """The names of an archived job's files, as far as its record knows them, itself the last."""
        if dump := self.read(job_id):
            yield from ExplainRequest.model_validate_json(dump.record["request"]).images
            for text in filter(None, dump.results.values()):
                yield from found_of(text)[1].values()
            yield NAME

    def image(self, digest: str, owner: str) -> str | None:
        """The archived job that an image of this owner was last sent with."""
        return self.store.noted(_place(owner, digest))

    def forget_images(self, job_id: str) -> None:
        """Nobody finds the images of an archived job that is removed."""
        if record := self.head(job_id):
            for digest in dict.fromkeys(ExplainRequest.model_validate_json(record["request"]).images):
                place = _place(record.get("owner", ""), digest)
                if self.store.noted(place) == job_id:
                    self.store.forget_note(place)

    def _keep(self, job_id: str, kept: _Kept) -> None:
        with self._lock:
            self._kept.pop(job_id, None)
            self._kept[job_id] = kept
            total = sum(each.size for each in self._kept.values())
            while total > KEPT_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].size

    def _dump(self, job_id: str) -> Dump | None:
        with redis_errors():
            fields, results, log, webhook = self._whole(keys=[f"ks:job:{job_id}"])
        if not fields:
            return None
        record = dict(zip(fields[::2], fields[1::2], strict=True))
        texts = dict(zip(map(int, results[::2]), results[1::2], strict=True))
        return Dump(record, texts, log, webhook)

    def _note_images(self, job_id: str, record: Record) -> None:
        owner, request = record.get("owner", ""), ExplainRequest.model_validate_json(record["request"])
        for digest in () if request.surveys else dict.fromkeys(request.images):
            self.store.note(_place(owner, digest), job_id)


def _expiring(record: Mapping[str, str]) -> str:
    """Where the jobs are noted that expire within the same hour."""
    return f"ks:expiring:{int(float(record['expires_at']) // HOUR)}"


def _place(owner: str, digest: str) -> str:
    """Where it is noted in which job's folder an image of an owner lies."""
    return f"images/{BlobStore.digest(owner.encode())[:32]}/{digest}"
