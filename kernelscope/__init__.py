"""Kernelscope: the command line, the local stack, and the Python client (`from kernelscope import Client`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelscope.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """The clients are imported on first use: numpy, Pillow and httpx take half a second."""
    if name in __all__:
        from kernelscope import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
