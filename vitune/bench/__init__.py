"""Benchmarks: studies under an honest protocol, their tables, and speed."""

__all__ = [
    "beside_honest",
    "comparing",
    "cost",
    "defaults",
    "launching",
    "pareto",
    "preset_page",
    "presets",
]
"""The files that other rooms may import from."""
