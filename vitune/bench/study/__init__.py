"""The honest protocol: what a study is, which runs it needs, where they run and are stored."""

__all__ = [
    "addressing",
    "cell_planner",
    "cells",
    "choosing",
    "current",
    "execution",
    "journal",
    "kept_adapters",
    "lost_runs",
    "on_ray",
    "plan",
    "protocol",
    "recipe",
    "running",
    "scores",
    "workbench",
]
"""The files that other rooms may import from."""
