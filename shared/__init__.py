"""Contracts that the API and the worker both need; imports neither FastAPI nor torch."""
