"""The page of `vitune compare`: several methods side by side, with their spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.report.formatting import count, duration
from vitune.report.intervals import mean_and_std
from vitune.report.reading import Record, as_record
from vitune.report.rendering import write_page
from vitune.report.scales import Scale, nice_scale
from vitune.report.scatter import Measured, ScatterChart, scatter_chart


@dataclass(frozen=True)
class Compared:
    """One method of a comparison.

    Args:
        mean: None where no run has an accuracy.
        spread: the standard deviation, None for a single seed.
        num_lost: runs without an accuracy.
    """

    method: str
    title: str
    top1: tuple[float, ...]
    mean: float | None
    spread: float | None
    num_lost: int
    num_parameters: int | None
    seconds: float | None
    peak_mib: float | None
    step_ms: float | None
    best: bool


def write_comparison(
    entries: Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    heading: str = "Methods compared",
    note: str | None = None,
) -> Path:
    """Write one self-contained HTML page about several methods and return its path.

    Args:
        entries: a mapping a method with the keys method, top1 (a list of accuracies in [0, 1], one
            a seed) and, where known, title, num_trainable_without_head, seconds, peak_mib, step_ms,
            num_lost (runs without an accuracy; top1 may then be empty).
        out: the file to write.
        heading: what was compared, in a few words.
        note: a sentence below the heading: data, backbone, which split.

    Raises:
        VituneError: no entries, or one whose values are missing or of the wrong kind.
    """
    if not entries:
        raise VituneError("entries: got none, expected at least one method to compare.")
    compared = _compared([as_record(dict(entry), f"entries[{index}]")
                          for index, entry in enumerate(entries)])  # fmt: skip
    context = {
        "heading": heading,
        "note": note,
        "compared": compared,
        "strip": _strip(compared),
        "scatters": _scatters(compared),
        "single": [entry for entry in compared if len(entry.top1) + entry.num_lost == 1],
    }
    return write_page(Path(out), "comparison.html", context)


def _compared(records: Sequence[Record]) -> list[Compared]:
    seeds = [_accuracies(record) for record in records]
    means = [mean_and_std(values) if values else (None, None) for values in seeds]
    lost = [record.whole("num_lost") or 0 for record in records]
    whole = [mean for (mean, _), gone in zip(means, lost, strict=True) if not gone]
    best = max((mean for mean in whole if mean is not None), default=None)
    compared = [
        Compared(
            method=str(record.needed("method")),
            title=record.text("title") or str(record.needed("method")),
            top1=values,
            mean=mean,
            spread=spread,
            num_lost=gone,
            num_parameters=record.whole("num_trainable_without_head"),
            seconds=record.number("seconds"),
            peak_mib=record.number("peak_mib"),
            step_ms=record.number("step_ms"),
            best=mean is not None and mean == best and not gone and len(records) > 1,
        )
        for record, values, (mean, spread), gone in zip(records, seeds, means, lost, strict=True)
    ]
    return sorted(compared, key=lambda entry: entry.num_lost > 0)  # stable: the order given


def _accuracies(record: Record) -> tuple[float, ...]:
    if record.whole("num_lost") and not record.listing("top1"):
        return ()
    record.needed("top1")
    given = [Record({"top1": value}, record.where) for value in record.listing("top1")]
    found = tuple(value for entry in given if (value := entry.share("top1")) is not None)
    if not found or len(found) < len(given):
        raise VituneError(
            f"{record.where}: top1: got {record.values['top1']!r}, expected an accuracy a seed."
        )
    return found


def _strip(compared: Sequence[Compared]) -> Scale:
    """The scale on which every method's seeds are drawn, in percent of the strip's width."""
    values = [value for entry in compared for value in entry.top1] or [0.0, 1.0]
    scale, _ = nice_scale(values, 3, 97, top=1.0)
    return scale


def _scatters(compared: Sequence[Compared]) -> list[ScatterChart]:
    """Accuracy against parameters and against time, for the methods that tell them."""
    kinds: list[tuple[str, str, Callable[[Compared], float | None], Callable[[float], str]]] = [
        (
            "Accuracy against trainable parameters",
            "trainable parameters without the head (logarithmic)",
            lambda entry: entry.num_parameters,
            lambda cost: f"{count(cost)} parameters",
        ),
        (
            "Accuracy against training time",
            "seconds of training (logarithmic)",
            lambda entry: entry.seconds,
            duration,
        ),
    ]
    charts = []
    for title, x_title, cost_of, tell in kinds:
        costs = [(entry, cost_of(entry)) for entry in compared]
        measured = [
            Measured(entry.title, cost, entry.mean, entry.spread, tell(cost), entry.best)
            for entry, cost in costs
            if cost is not None and entry.mean is not None and not entry.num_lost
        ]
        charts.append(scatter_chart(title, x_title, measured))
    return [chart for chart in charts if chart is not None]
