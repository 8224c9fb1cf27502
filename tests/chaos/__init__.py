"""Failure tests: each file is named after what it breaks."""
