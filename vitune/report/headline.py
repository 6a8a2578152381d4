"""The one score that a report opens with: on which images, and with which warning."""

from __future__ import annotations

from dataclasses import dataclass

from vitune.report.evaluations import is_validation
from vitune.report.intervals import wilson_interval
from vitune.report.results import RunResults

OPTIMISTIC = "These images also chose the epoch, so the score is optimistic."


@dataclass(frozen=True)
class Headline:
    """An accuracy with its 95 % interval (None if the number of images is unknown)."""

    value: float
    interval: tuple[float, float] | None
    name: str
    num_images: int | None
    data: str | None
    note: str | None


def headline(results: RunResults) -> Headline | None:
    """The first evaluation (test sets come first), else the validation score of training, if any.

    Scores of earlier weights are not used.

    A validation score of the best epoch is marked as optimistic: those images chose the epoch.
    """
    summary = results.summary
    chosen = summary is not None and summary.reported.which == "best"
    optimistic = OPTIMISTIC if chosen else None
    if results.evaluations and not results.evaluations[0].is_outdated:
        first = results.evaluations[0]
        marks = [*first.marks, *([optimistic] if optimistic and is_validation(first) else [])]
        note = " ".join(marks) or None
        return Headline(first.top1, first.interval, first.name, first.num_images, first.data, note)
    if summary is not None and summary.reported.val_accuracy is not None:
        value, num_val = summary.reported.val_accuracy, summary.num_val
        interval = wilson_interval(value, num_val) if num_val and not summary.val_groups else None
        return Headline(value, interval, "validation", num_val, None, optimistic)
    scored = [entry for entry in results.epochs if entry.val_accuracy is not None]
    if not scored or scored[-1].val_accuracy is None:
        return None
    note = f"As of epoch {scored[-1].epoch}; the run has not finished."
    return Headline(scored[-1].val_accuracy, None, "validation", None, None, note)
