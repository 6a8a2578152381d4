"""Suites, named lists of tasks: their contents, checks, and tiny copies."""

__all__ = [
    "checking",
    "shots",
    "suite_names",
    "suites",
    "tiny_copies",
]
"""The files that other rooms may import from."""
