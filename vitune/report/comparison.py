"""The page of `vitune compare`: several methods side by side, with their spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.report.formatting import count, duration
from vitune.report.intervals import mean_and_std
from vitune.report.rendering import write_page
from vitune.report.scales import Scale, nice_scale
from vitune.report.scatter import Measured, ScatterChart, scatter_chart
from vitune.result_files import Record, as_record

LEVEL = 0.05
"""A p value below this tells two methods apart."""


@dataclass(frozen=True)
class Compared:
    """One method of a comparison.

    Args:
        mean: None where no run has an accuracy.
        spread: standard deviation over seeds, None for a single one.
        num_lost: runs without an accuracy.
        lr: the learning rate it was trained with, None if unknown.
        lr_from: where that comes from, in a word or two.
        seconds: wall-clock time of training, including the machine's other load.
        cpu_seconds: processor time of training, which other programs do not lengthen.
        best: better than every other method by more than chance.
    """

    method: str
    title: str
    top1: tuple[float, ...]
    mean: float | None
    spread: float | None
    num_lost: int
    lr: float | None
    lr_from: str
    num_parameters: int | None
    seconds: float | None
    cpu_seconds: float | None
    peak_mib: float | None
    step_ms: float | None
    best: bool


@dataclass(frozen=True)
class Difference:
    """Method `first` minus method `second`, with a 95 % interval; `apart` by more than chance."""

    first: str
    second: str
    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    apart: bool


def write_comparison(
    entries: Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    heading: str = "Methods compared",
    note: str | None = None,
    differences: Sequence[Mapping[str, Any]] = (),
    explanation: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page about several methods and return its path.

    Args:
        entries: a mapping per method with the keys method, top1 (a list of accuracies in [0, 1],
            one per seed) and, where known, title, lr, lr_from, num_trainable_without_head,
            seconds, cpu_seconds, peak_mib, step_ms, num_lost (runs without an accuracy; top1 may
            then be empty).
        out: the file to write.
        heading: what was compared, in a few words.
        note: a sentence below the heading: data, backbone, which split.
        differences: a mapping per pair with the keys first, second (methods), mean and, where
            known, low, high (95 % interval) and p_value; all in accuracy, where 0.01 is a point. A
            method is highlighted only where they tell it apart from every other.
        explanation: how the differences were tested, a sentence each.

    Raises:
        VituneError: no entries, or one whose values are missing or of the wrong kind.
    """
    if not entries:
        raise VituneError("entries: got none, expected at least one method to compare.")
    tested = [
        _difference(as_record(dict(found), f"differences[{index}]"))
        for index, found in enumerate(differences)
    ]
    records = [as_record(dict(entry), f"entries[{i}]") for i, entry in enumerate(entries)]
    compared = _compared(records, tested)
    context = {
        "heading": heading,
        "note": note,
        "compared": compared,
        "differences": tested,
        "titles": {entry.method: entry.title for entry in compared},
        "explanation": explanation,
        "strip": _strip(compared),
        "scatters": _scatters(compared),
        "single": [entry for entry in compared if len(entry.top1) + entry.num_lost == 1],
    }
    return write_page(Path(out), "comparison.html", context)


def _compared(records: Sequence[Record], tested: Sequence[Difference]) -> list[Compared]:
    seeds = [_accuracies(record) for record in records]
    names = [str(record.needed("method")) for record in records]
    means = [mean_and_std(values) if values else (None, None) for values in seeds]
    lost = [record.whole("num_lost") or 0 for record in records]
    compared = [
        Compared(
            method=name,
            title=record.text("title") or name,
            top1=values,
            mean=mean,
            spread=spread,
            num_lost=gone,
            lr=record.number("lr"),
            lr_from=record.text("lr_from") or "",
            num_parameters=record.whole("num_trainable_without_head"),
            seconds=record.number("seconds"),
            cpu_seconds=record.number("cpu_seconds"),
            peak_mib=record.number("peak_mib"),
            step_ms=record.number("step_ms"),
            best=not gone and _leads(name, names, tested),
        )
        for name, record, values, (mean, spread), gone in zip(
            names, records, seeds, means, lost, strict=True
        )
    ]
    return sorted(compared, key=lambda entry: entry.num_lost > 0)  # stable: the order given


def _difference(record: Record) -> Difference:
    """A pair; told apart by its p value, or by an interval without 0 if there is no p value."""
    record.needed("mean")
    low, high, p_value = record.number("low"), record.number("high"), record.share("p_value")
    if p_value is not None:
        apart = p_value < LEVEL
    else:
        apart = low is not None and high is not None and (low > 0 or high < 0)
    return Difference(
        first=str(record.needed("first")),
        second=str(record.needed("second")),
        mean=record.number("mean") or 0.0,
        low=low,
        high=high,
        p_value=p_value,
        apart=apart,
    )


def _leads(name: str, names: Sequence[str], tested: Sequence[Difference]) -> bool:
    """Whether `name` is better than every other method by more than chance."""
    below = {d.second for d in tested if d.first == name and d.apart and d.mean > 0}
    below |= {d.first for d in tested if d.second == name and d.apart and d.mean < 0}
    return len(names) > 1 and below >= set(names) - {name}


def _accuracies(record: Record) -> tuple[float, ...]:
    if record.whole("num_lost") and not record.listing("top1"):
        return ()
    record.needed("top1")
    given = [Record({"top1": value}, record.where) for value in record.listing("top1")]
    found = tuple(value for entry in given if (value := entry.share("top1")) is not None)
    if not found or len(found) < len(given):
        raise VituneError(
            f"{record.where}: top1: got {record.values['top1']!r}, expected an accuracy per seed."
        )
    return found


def _strip(compared: Sequence[Compared]) -> Scale:
    """The scale on which every method's seeds are drawn, in percent of the strip's width."""
    values = [value for entry in compared for value in entry.top1] or [0.0, 1.0]
    scale, _ = nice_scale(values, 3, 97, top=1.0)
    return scale


def _scatters(compared: Sequence[Compared]) -> list[ScatterChart]:
    """Accuracy against parameters and against processor time, for the methods that have them.

    Wall-clock time is not drawn: it would show the machine's other load.
    """
    kinds: list[tuple[str, str, Callable[[Compared], float | None], Callable[[float], str]]] = [
        (
            "Accuracy against trainable parameters",
            "trainable parameters without the head (logarithmic)",
            lambda entry: entry.num_parameters,
            lambda cost: f"{count(cost)} parameters",
        ),
        (
            "Accuracy against processor time",
            "processor seconds of training, waiting left out (logarithmic)",
            lambda entry: entry.cpu_seconds,
            lambda cost: f"{duration(cost)} of processor time",
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
