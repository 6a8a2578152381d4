"""Classes with a single image: nothing of theirs can be held out, and the user is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vitune.data import open_source
from vitune.training.train_config import TrainConfig


@dataclass(frozen=True)
class LoneClasses:
    """Classes with one image, where validation has to be cut from training.

    Args:
        are_all: whether every class is such a one, so that there is no validation at all.
    """

    names: tuple[str, ...] = ()
    are_all: bool = False


def lone_classes(config: TrainConfig) -> LoneClasses:
    """The classes of `config.data` with one image; none where it brings validation of its own."""
    if config.refit:
        return LoneClasses()
    images = open_source(config.data)
    training = next((n for n in ("train", "all", "trainval") if n in images.splits), None)
    if training is None or "val" in images.splits:
        return LoneClasses()
    counts = Counter(record.label for record in images.splits[training])
    names = tuple(images.classes[label] for label in sorted(counts) if counts[label] == 1)
    return LoneClasses(names, len(names) == len(counts))


def scarcity_notice(lone: LoneClasses, *, solved: bool) -> str:
    """One line where classes have a single image; empty elsewhere."""
    if not lone.names:
        return ""
    shown = ", ".join(lone.names[:3]) + (" and others" if len(lone.names) > 3 else "")
    many = "1 class has" if len(lone.names) == 1 else f"{len(lone.names)} classes have"
    if not lone.are_all:
        return f"{many} one image ({shown}): trained on, but absent from validation."
    text = f"{many} one image ({shown}): nothing is held out for validation"
    if solved:
        return f"{text}."
    return f"{text}, and nothing tells whether adapting helps. --method linear is the safe choice."
