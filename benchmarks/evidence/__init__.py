"""Does X̂ show what is in X? `python -m benchmarks.evidence --help`."""
