"""Surveys of data sets, and the pages of their kernels."""
