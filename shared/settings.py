"""Every setting of every process, typed, read once from the environment (`KERNELSCOPE_*`) and an `.env` file.

The file is the one that KERNELSCOPE_ENV_FILE names, else, in a checkout, the `.env` at its root, where Compose reads it
too. The `.env` of the current folder, and one beside an installed program, may be another project's: they are not read.
"""

from __future__ import annotations

import os
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from platformdirs import user_data_path
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.addresses import address, checked_rate, checked_site, origin

NAMED_ENV_FILE = os.environ.get("KERNELSCOPE_ENV_FILE", "")


def _env_file() -> Path | None:
    """The `.env` to read, which need not exist; None for an installed program if none is named."""
    if NAMED_ENV_FILE:
        return Path(NAMED_ENV_FILE).expanduser()
    root = Path(__file__).parents[1]
    try:
        checkout = 'name = "kernelscope"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return root / ".env" if checkout else None


ENV_FILE = _env_file()


class Settings(BaseSettings):
    """The table of docs/settings.md is generated from these descriptions and compared with them in a test."""

    model_config = SettingsConfigDict(
        env_prefix="KERNELSCOPE_", env_file=ENV_FILE, extra="ignore", hide_input_in_errors=True
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description=("Redis of job records and the queue; `rediss://…` for TLS (`kernelscope up` starts its own)"),
    )
    redis_password: SecretStr = Field(
        SecretStr(""),
        description="Redis's password, with any characters, if the URL has none",
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("kernelscope"),
        description="folder in which `kernelscope up` stores its Redis data, pictures and logs",
    )
    store_url: str = Field(
        "",
        description=(
            "object store for images and results, `file:///…` or `s3://…`; empty: `store` in the data directory"
        ),
    )
    weights_dir: Path | None = Field(
        None,
        description=(
            "folder of weights (`vgg16.pth`, `vgg16-mine.safetensors`); empty: `weights` in the data directory"
        ),
    )
    download_weights: bool = Field(True, description="download torchvision's ImageNet weights if the folder has none")
    models: str = Field(
        "",
        description=(
            "networks of your own code: `package.module:function`, which workers import and call; the "
            "function gives each name its `nn.Module` (docs/networks.md)"
        ),
    )
    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that the API listens on")
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        ("vgg16",),
        description="networks that a worker loads before it reports itself ready, separated by commas",
    )
    device: str = Field(
        "auto",
        description=(
            "torch device of a worker: `auto` (the first NVIDIA card, or else the CPU), `cpu`, `cuda`, "
            "`cuda:1`, `mps` (Apple's GPU, untested)"
        ),
    )
    gpu_memory_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description=("fraction of its card's memory that a worker may use; below 1 if other programs use the card"),
    )
    engine: Literal["torch", "dummy"] = Field(
        "torch",
        description="`torch` computes; `dummy` returns made-up results at once, to test the service without a network",
    )
    slices: int = Field(
        0,
        ge=0,
        description=(
            "slices of jobs (up to 16 items each) that a worker runs at the same time, a quarter of them "
            "from big jobs; 0: 8 on a CPU, 64 on a GPU"
        ),
    )
    access: Literal["auto", "keys", "open"] = Field(
        "auto",
        description=(
            "who may use the API: `keys`: only callers with an API key; `open`: everybody; `auto`: "
            "everybody if the address is loopback, there is no proxy and no key was ever made, otherwise "
            "only callers with a key"
        ),
    )
    public_url: str = Field(
        "",
        description=(
            "public address of this API behind a proxy, `https://lab.example/kernelscope`; see docs/deployment.md"
        ),
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description=(
            "addresses or networks of the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are "
            "trusted, `127.0.0.1,10.0.0.0/8`"
        ),
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description=(
            "host names besides localhost that are accepted in requests to a server without keys, "
            "separated by commas; `*`: any"
        ),
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        description=("seconds that an idle connection stays open; must be longer than in a proxy in front of the API"),
    )
    rate_limit: str = Field(
        "6000/minute", description="request rate of a key that has no rate of its own, such as `100/second`"
    )
    max_open: int = Field(
        1024,
        ge=1,
        description=("limit on the unfinished slices (up to 16 items each) of a key that has no limit of its own"),
    )
    max_queued: int = Field(100_000, ge=1, description="limit on the slices in the queue, of all callers together")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description=(
            "origins of other sites whose pages may call the API, `https://lab.example`, separated by commas; `*`: all"
        ),
    )
    webhook_private: bool = Field(False, description="also call webhooks on private and loopback addresses")
    metrics_bind: str = Field(
        "",
        description=(
            "separate address for the API's metrics, without keys, such as `127.0.0.1:9100`; empty: "
            "`/metrics` of the API"
        ),
    )
    otlp_endpoint: str = Field(
        "",
        description=(
            "receiver of every process's traces (OTLP over HTTP, protobuf), such as "
            "`http://collector:4318`; empty: none"
        ),
    )
    worker_metrics_bind: str = Field(
        "", description="address for a worker's metrics, such as `127.0.0.1:9101`; empty: none"
    )
    max_body_mb: int = Field(32, ge=1, description="largest request body, in megabytes (10⁶ bytes)")
    max_megapixels: float = Field(50.0, gt=0, description="largest image, in megapixels")
    max_dataset_images: int = Field(100_000, ge=1, description="maximum number of images in a data set")
    max_items: int = Field(2048, ge=1, description="maximum number of items (image × kernel × method × α × β) in a job")
    retention_days: float = Field(30.0, gt=0, description="days after which a job and its pictures are deleted")
    lease_seconds: float = Field(
        20.0, gt=0, description="seconds without progress after which a worker loses its leases and exits"
    )
    max_attempts: int = Field(3, ge=1, description="attempts for a slice whose worker dies before it fails")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level of log lines that are written: `DEBUG`, `INFO`, `WARNING` or `ERROR`"
    )

    log_format: Literal["text", "json"] = Field(
        "text", description="format of log lines: `text`, or `json` (docs/metrics.md)"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_file_exists(cls, value: object) -> object:
        if NAMED_ENV_FILE and ENV_FILE and not ENV_FILE.exists():
            raise ValueError(f"KERNELSCOPE_ENV_FILE names {ENV_FILE}, which does not exist")
        return value

    @field_validator("preload", "cors_origins", "trusted_proxies", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`vgg16,vgg_mini` → two names; an empty string → none."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("public_url")
    @classmethod
    def _site(cls, value: str) -> str:
        return value and checked_site(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ip_network(one, strict=False)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(origin, value))

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        """The message contains nothing of the value: the part that is wrong may be the password."""
        try:
            parts = urlsplit(value.get_secret_value())
            usable = parts.port != 0 and not parts.fragment and "@" not in parts.path + parts.query
        except ValueError:
            usable = False
        if not (usable and parts.scheme in ("redis", "rediss")):
            raise ValueError(
                "this is not the URL of a Redis; write redis://HOST:6379/0, and its password as "
                "KERNELSCOPE_REDIS_PASSWORD, or in the URL with %2F for /, %23 for #, %3F for ?, %40 for @, %25 for %"
            )
        return value

    @field_validator("metrics_bind", "worker_metrics_bind")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            address(value)
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and urlsplit(value).hostname):
            raise ValueError(f"{value!r} is not a receiver's address; write http://host:4318, without /v1/traces")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        return checked_rate(value)

    @field_validator("weights_dir", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def behind_proxy(self) -> bool:
        """Whether the API is known to be behind a proxy."""
        return bool(self.public_url or self.trusted_proxies)

    @property
    def root(self) -> str:
        """The path of the public URL, `/kernelscope`; empty at the root of a host."""
        return urlsplit(self.public_url).path

    @property
    def redis(self) -> str:
        """Redis's URL, with the password filled in."""
        url, password = self.redis_url.get_secret_value(), self.redis_password.get_secret_value()
        parts = urlsplit(url)
        if not password or parts.password is not None:
            return url
        user, _, host = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()

    @property
    def store(self) -> str:
        """The object store's URL, with the default filled in."""
        return self.store_url or (self.data_dir.absolute() / "store").as_uri()

    @property
    def weights(self) -> Path:
        """The weights folder, with the default filled in; it need not exist."""
        return (self.weights_dir or self.data_dir / "weights").expanduser()


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
