"""The archive: each ended job is one object in the store. Redis has only its line in the owner's list, and its expiry.

The object is `record` in the job's folder. It has two compressed parts, the record and everything else, so that lists
need not read results. It is written before the job is deleted from Redis, which happens only if it has not changed.
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
HEAD_BYTES = 4096  # read of it for a list; nearly all first parts are smaller
SIZE = struct.Struct(">I")
CACHED_BYTES = 16_000_000  # of archived jobs, uncompressed
HOUR = 3600
STALE_SECONDS = 5.0  # after which a job that was read may have been retried, and archived by another process
EXPIRING = "ks:expiring"  # sorted set: key of the list of jobs that expire within an hour → that hour
SEPARATOR = " "
REMOVED = "ks:removed"  # sorted set: removed job whose files are still to be deleted → time of removal
LATE = "ks:late"  # sorted set: job that did not exist when a file was written for it → time


@dataclass(frozen=True)
class Dump:
    """All data of an ended job except its files."""

    record: Record
    results: Texts = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    webhook: list[str] = field(default_factory=list)

    def packed(self) -> bytes:
        """The stored object: the length of the first part, and the two parts."""
        head = zlib.compress(json.dumps(dict(self.record)).encode())
        rest = {"results": self.results, "log": self.log, "webhook": self.webhook}
        return SIZE.pack(len(head)) + head + zlib.compress(json.dumps(rest).encode())

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """The data from a stored object. Additions of later versions are ignored."""
        (length,) = SIZE.unpack_from(data)
        record: Record = json.loads(zlib.decompress(data[SIZE.size : SIZE.size + length]))
        rest: dict[str, Any] = json.loads(zlib.decompress(data[SIZE.size + length :]))
        results = {int(index): text for index, text in rest["results"].items()}
        return cls(record, results, rest.get("log", []), rest.get("webhook", []))


@dataclass(frozen=True)
class _Cached:
    """A cached job, and the ETag of its object, which changes when the job is retried and archived again."""

    dump: Dump
    tag: str | None

    @property
    def size(self) -> int:
        return sum(map(len, self.dump.results.values())) + 4096


def line_of(job_id: str, record: Record) -> str:
    """The line of an ended job in its owner's list, with everything that jobs can be filtered by."""
    request = ExplainRequest.model_validate_json(record["request"])
    return SEPARATOR.join((job_id, record["status"], request.model, request.layer))


class Archive:
    """Moves ended jobs from Redis to the object store, and reads them there.

    Args:
        redis: a client that decodes responses.
    """

    def __init__(self, redis: Redis, store: BlobStore) -> None:
        self.redis = redis
        self.store = store
        self.migration = Migration(redis, store)
        self._dump_script = script(redis, "dump")
        self._delete = script(redis, "archive")
        self._restore = script(redis, "restore")
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._lock = Lock()

    def put(self, job_id: str) -> bool:
        """Move an ended job to the store. False if it does not exist, has not ended, or reading it took too long."""
        begin = time.monotonic()
        dump = self._dump(job_id)
        if dump is None or not Status(dump.record["status"]).terminal:
            return False
        if "v" not in dump.record:
            dump = replace(dump, log=self.migration.log_of(job_id) + dump.log)
            self.migration.adopt(job_id)
        dump = replace(dump, record={**dump.record, "v": str(FORM)})
        if time.monotonic() - begin > STALE_SECONDS:  # this machine was suspended: it might overwrite a newer object
            return False
        self.store.put(job_id, dump.packed(), NAME)
        self._write_image_references(job_id, dump.record)
        record = dump.record
        entry = SEPARATOR.join((job_id, record["created_at"], record.get("owner", "")))
        arguments = (job_id, record["finished_at"], line_of(job_id, record), _expiring(record), entry)
        with redis_errors():
            if self._delete(keys=[f"ks:job:{job_id}"], args=arguments):
                return True
            gone = not self.redis.exists(f"ks:job:{job_id}")
            if gone and self.redis.zscore(f"ks:jobs:{record.get('owner', '')}", arguments[2]) is None:
                # It was removed, perhaps with its files, before this was written.
                self.redis.zadd(REMOVED, {job_id: now(self.redis)})
            return False

    def restore(self, job_id: str) -> bool:
        """Copy an archived job back into Redis. False if there is none, or it is in Redis already."""
        dump = self.read(job_id)
        if dump is None:
            return False
        record = dict(dump.record)
        results = {str(index): text for index, text in dump.results.items()}
        parts = [json.dumps(part) for part in (record, results, dump.log, dump.webhook)]
        with redis_errors():
            return bool(self._restore(keys=[f"ks:job:{job_id}"], args=[job_id, *parts]))

    def list_again(self, job_id: str) -> bool:
        """Add an archived job to its owner's list and to that of its expiry. False if Redis has it already."""
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
        """The record of an archived job, without its results; None if there is none."""
        data = self.store.get_start(job_id, NAME, HEAD_BYTES)
        if data is None:
            return None
        (length,) = SIZE.unpack_from(data)
        if SIZE.size + length > len(data):
            data = self.store.get_start(job_id, NAME, SIZE.size + length)
            if data is None or SIZE.unpack_from(data)[0] != length:  # removed or replaced at this moment
                return self.head(job_id)
        record: Record = json.loads(zlib.decompress(data[SIZE.size : SIZE.size + length]))
        return record

    def read(self, job_id: str) -> Dump | None:
        """An archived job; None if there is none."""
        with self._lock:
            cached = self._cache.get(job_id)
        found = self.store.get_if_changed(job_id, NAME, cached.tag if cached else None)
        if found is None:
            return None
        data, tag = found
        if data is None and cached:
            return cached.dump
        dump = Dump.unpacked(data or b"")
        self._put_in_cache(job_id, _Cached(dump, tag))
        return dump

    def files(self, job_id: str) -> Iterator[str]:
        """The names of an archived job's files that its record refers to, and last the name of the record itself."""
        if dump := self.read(job_id):
            yield from ExplainRequest.model_validate_json(dump.record["request"]).images
            for text in filter(None, dump.results.values()):
                yield from found_of(text)[1].values()
            yield NAME

    def image(self, digest: str, owner: str) -> str | None:
        """The id of the last archived job of this owner with this image."""
        return self.store.noted(_place(owner, digest))

    def remove_image_references(self, job_id: str) -> None:
        """Delete the references from images to an archived job that is being removed."""
        if record := self.head(job_id):
            for digest in dict.fromkeys(ExplainRequest.model_validate_json(record["request"]).images):
                place = _place(record.get("owner", ""), digest)
                if self.store.noted(place) == job_id:
                    self.store.forget_note(place)

    def _put_in_cache(self, job_id: str, cached: _Cached) -> None:
        with self._lock:
            self._cache.pop(job_id, None)
            self._cache[job_id] = cached
            total = sum(each.size for each in self._cache.values())
            while total > CACHED_BYTES and len(self._cache) > 1:
                total -= self._cache.popitem(last=False)[1].size

    def _dump(self, job_id: str) -> Dump | None:
        with redis_errors():
            fields, results, log, webhook = self._dump_script(keys=[f"ks:job:{job_id}"])
        if not fields:
            return None
        record = dict(zip(fields[::2], fields[1::2], strict=True))
        texts = dict(zip(map(int, results[::2]), results[1::2], strict=True))
        return Dump(record, texts, log, webhook)

    def _write_image_references(self, job_id: str, record: Record) -> None:
        owner, request = record.get("owner", ""), ExplainRequest.model_validate_json(record["request"])
        for digest in () if request.surveys else dict.fromkeys(request.images):
            self.store.note(_place(owner, digest), job_id)


def _expiring(record: Mapping[str, str]) -> str:
    """The key of the list of jobs that expire within the same hour."""
    return f"ks:expiring:{int(float(record['expires_at']) // HOUR)}"


def _place(owner: str, digest: str) -> str:
    """The path of the reference from an owner's image to the job whose folder contains it."""
    return f"images/{BlobStore.digest(owner.encode())[:32]}/{digest}"
