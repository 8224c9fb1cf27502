"""Surveys of data sets, and what they know of a kernel."""
