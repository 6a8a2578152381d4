"""Named lists of tasks: what belongs to a suite, how it is checked, tiny copies of it."""

__all__ = [
    "checking",
    "shots",
    "suite_names",
    "suites",
    "tiny_copies",
]
"""The files that other rooms may import from."""
