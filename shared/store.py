"""Content-addressed blobs in one URL-configured object store: `file://` on one machine, `s3://` on many.

Where an S3 store is and who one is to it comes from the environment, as of every other program that speaks S3:
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, or a role of the machine.
"""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from shared.errors import StoreUnavailable

GLANCE_SECONDS = 2.0  # that a question without an answer of any size may take


class BlobStore:
    """Immutable bytes under their SHA-256. Writing the same bytes twice is harmless.

    Args:
        patience: seconds that writing or reading one blob may take; a store that is away is found out sooner.
    """

    def __init__(self, url: str, patience: float = 30.0) -> None:
        self._store = _open(url, patience)
        self._glance = _open(url, GLANCE_SECONDS)

    @staticmethod
    def digest(data: bytes) -> str:
        """The name that bytes have in the store: their SHA-256, 64 hex digits."""
        return hashlib.sha256(data).hexdigest()

    def put(self, data: bytes) -> str:
        """Store bytes (atomically: a reader never sees half a blob) and return their digest."""
        digest = self.digest(data)
        try:
            obstore.put(self._store, _path(digest), data)
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store took no data ({_first_line(error)})") from error
        return digest

    def get(self, digest: str) -> bytes | None:
        """The bytes of a blob, or None where there is no such blob."""
        try:
            return bytes(obstore.get(self._store, _path(digest)).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store gave no data ({_first_line(error)})") from error

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        try:
            obstore.head(self._glance, _path(digest))
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store does not answer ({_first_line(error)})") from error
        return True

    def remove(self, digest: str) -> None:
        """Remove a blob; a missing one is no error."""
        try:
            obstore.delete(self._glance, _path(digest))
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the object store removed nothing ({_first_line(error)})") from error


def _open(url: str, patience: float) -> ObjectStore:
    if url.startswith("file:"):
        return LocalStore(Path(url2pathname(urlsplit(url).path)), mkdir=True)
    plain = any(os.environ.get(f"AWS_ENDPOINT{suffix}", "").startswith("http:") for suffix in ("", "_URL", "_URL_S3"))
    return from_url(
        url,
        client_options={"timeout": timedelta(seconds=patience), "connect_timeout": "500ms", "allow_http": plain},
        retry_config={
            "max_retries": 1,
            "retry_timeout": timedelta(seconds=1),
            "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=0.2), "base": 2},
        },
    )


def _path(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
