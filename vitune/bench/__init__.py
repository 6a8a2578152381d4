"""Studies with an honest protocol, their tables, and speed: what decides between methods."""

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
