"""`make soak`: the slow tests at their full counts, with results as JSON: `python -m tests.soak [PYTEST ARGUMENTS]`."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

SLOW = "(slow or weights or web or chaos or contract or containers) and not gpu"


@dataclass
class Collected:
    """A pytest plugin that collects outcomes and recorded properties."""

    tests: list[dict[str, Any]] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line a test, and one for a fixture that failed."""
        if report.when == "call" or report.outcome != "passed":
            figures = dict(report.user_properties)
            self.tests.append(
                {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), **figures}
            )


def main() -> int:
    """Run, print, and fail where a test failed."""
    os.environ["KERNELSCOPE_FULL_COUNTS"] = "1"
    collected = Collected()
    begin = time.monotonic()
    # pytest's own lines go to stderr, so that stdout is JSON and nothing else.
    stdout = os.dup(1)
    os.dup2(2, 1)
    code = pytest.main(["-q", "--timeout", "7200", "-m", SLOW, *sys.argv[1:]], plugins=[collected])
    os.dup2(stdout, 1)
    failed = [test["test"] for test in collected.tests if test["outcome"] == "failed"]
    report = {"seconds": round(time.monotonic() - begin), "failed": failed, "tests": collected.tests}
    print(json.dumps(report, indent=1))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
