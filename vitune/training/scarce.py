"""Data with so few images that nothing can be held out, and what the user is told of it."""

from __future__ import annotations

from collections import Counter

from vitune.data import open_source
from vitune.training.config import TrainConfig


def lone_classes(config: TrainConfig) -> list[str]:
    """Classes with a single image, where validation would have to be cut from training.

    Then nothing is held out: every class keeps its images, and no epoch can be chosen.
    """
    if config.refit:
        return []
    images = open_source(config.data)
    if "val" in images.splits:
        return []
    training = next((n for n in ("train", "all", "trainval") if n in images.splits), None)
    counts = Counter(record.label for record in images.splits[training]) if training else {}
    return [images.classes[label] for label, count in sorted(counts.items()) if count == 1]


def scarcity_notice(config: TrainConfig, lone: list[str], *, solved: bool) -> str:
    """One line where classes have a single image; empty elsewhere."""
    if not lone:
        return ""
    names = ", ".join(lone[:3]) + (" and others" if len(lone) > 3 else "")
    text = f"{len(lone)} classes have one image ({names}): nothing is held out for validation"
    if solved:
        return f"{text}."
    return (
        f"{text}, and nothing tells whether adapting helps. --method linear is the safe choice."
    )
