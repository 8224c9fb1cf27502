"""Opening an object store by its URL, and the paths of jobs' files in it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from obstore.store import LocalStore, ObjectStore, from_url


def local_folder(url: str) -> Path | None:
    """The folder of a `file://` URL; None for other URLs."""
    return Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None


def open_store(url: str, patience: float) -> ObjectStore:
    """A client with a timeout in seconds and one retry."""
    if folder := local_folder(url):
        return LocalStore(folder, mkdir=True)
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


def job_path(job_id: str, name: str) -> str:
    """The path of a job's file."""
    return f"jobs/{job_id[-2:]}/{job_id}/{name}"


def legacy_path(digest: str) -> str:
    """The path of a blob in earlier versions, where jobs had no folders."""
    return f"blobs/{digest[:2]}/{digest}"
