"""Classes with a single image: none of it can be held out, and the user is warned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vitune.data import open_source
from vitune.training.train_config import TrainConfig


@dataclass(frozen=True)
class LoneClasses:
    """Classes with one image, if validation has to be split from training.

    Args:
        are_all: whether every class has one image, so that there is no validation at all.
    """

    names: tuple[str, ...] = ()
    are_all: bool = False


def lone_classes(config: TrainConfig) -> LoneClasses:
    """The classes of `config.data` with one image; none if it has its own validation split."""
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
    """One line if classes have a single image; else empty."""
    if not lone.names:
        return ""
    shown = ", ".join(lone.names[:3]) + (" and others" if len(lone.names) > 3 else "")
    many = "1 class has" if len(lone.names) == 1 else f"{len(lone.names)} classes have"
    if not lone.are_all:
        return f"{many} one image ({shown}): used for training, absent from validation."
    text = f"{many} one image ({shown}): nothing is held out for validation"
    if solved:
        return f"{text}."
    return (
        f"{text}, so there is no way to tell whether adapting helps. "
        "--method linear is the safe choice."
    )
