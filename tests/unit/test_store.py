"""The blob store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shared.errors import StoreUnavailable
from shared.store import BlobStore


def test_blobs_are_content_addressed(tmp_path: Path) -> None:
    """Put, get, put again, remove, remove again."""
    store = BlobStore(tmp_path.as_uri() + "/a/b")
    digest = store.put(b"bytes")
    assert digest == hashlib.sha256(b"bytes").hexdigest() == store.put(b"bytes")
    assert store.has(digest)
    assert store.get(digest) == b"bytes"
    store.remove(digest)
    store.remove(digest)
    assert not store.has(digest)
    assert store.get(digest) is None


def test_paths_with_spaces_and_umlauts(tmp_path: Path) -> None:
    """A user's folder may be named anything."""
    folder = tmp_path / "böse Daten"
    digest = BlobStore(folder.as_uri()).put(b"x")
    assert (folder / "blobs" / digest[:2] / digest).read_bytes() == b"x"


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """Our error, not the library's."""
    store = BlobStore(tmp_path.as_uri())
    (tmp_path / "blobs").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="took no data"):
        store.put(b"x")
