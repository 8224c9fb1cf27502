# Generated from asynchronous/__init__.py by `python -m kernelscope.client.generate`: edit that.
"""The synchronous client."""

from kernelscope.client.sync.client import Client
from kernelscope.client.sync.jobs import Job
from kernelscope.client.sync.results import Explanation, Result

__all__ = ["Client", "Explanation", "Job", "Result"]
