"""A speed result for people: a table, ratios, and what got slower since the last one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitune.bench.speed.ratios import step_ratio
from vitune.bench.speed.references import HEADS as REFERENCE_HEADS
from vitune.bench.speed.references import TEXTBOOK, references

SLOWER_FROM = 1.05

KEYS = ("method", "batch", "precision")
TIMES = ("step ms", "±", "forward", "backward", "optimiser", "/ reference", "/ floor")
SIZES = ("peak MiB", "resident MiB", "adapter KB", "merged / plain", "un-merged / plain")
HEADS = (*KEYS, *TIMES, *SIZES)


@dataclass(frozen=True)
class Section:
    """Figures of all methods at one batch and precision, for a page of limited width.

    Args:
        title: batch and precision.
        heads: of the columns; one that is empty for every method is left out.
        rows: one line of cells per method.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def format_table(result: Mapping[str, Any]) -> str:
    """The figures as a Markdown table; ratios are medians of the ratios within each round."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    lines += [_line(list(_cells(row, reference_row(rows, row)).values())) for row in rows]
    for section in against(result):
        lines += ["", f"{section.title}:", "", _line(section.heads)]
        lines += [_line(["---"] * len(section.heads)), *map(_line, section.rows)]
    return "\n".join([*lines, "", *remarks(result)])


def sections(result: Mapping[str, Any]) -> Iterator[Section]:
    """Times, then sizes, of every batch and precision."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    for batch, precision in dict.fromkeys((row["batch"], row["precision"]) for row in rows):
        own = [
            _cells(row, reference_row(rows, row))
            for row in rows
            if (row["batch"], row["precision"]) == (batch, precision)
        ]
        for heads in (TIMES, SIZES):
            filled = ("method", *(head for head in heads if any(cells[head] for cells in own)))
            if len(filled) > 1:
                table = tuple(tuple(cells[head] for head in filled) for cells in own)
                yield Section(f"batch {batch}, {precision}", filled, table)


def against(result: Mapping[str, Any]) -> Iterator[Section]:
    """RLRR / textbook for every measured reference, one table per batch and precision."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    for batch, precision in dict.fromkeys((row["batch"], row["precision"]) for row in rows):
        cells = [found.cells for found in references(rows, batch, precision)]
        if cells:
            title = f"RLRR / textbook, batch {batch}, {precision}"
            yield Section(title, REFERENCE_HEADS, tuple(cells))


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Notes on the machine, and how times grow with the batch."""
    rates = ", ".join(f"{n} {rate:.0f}" for n, rate in result["matmul_gflops"].items())
    machine = result["machine"]
    return [
        f"{machine['device']}, {machine['num_threads']} threads, torch "
        f"{machine['versions'].get('torch', '?')}; matrix products {rates} GFLOP/s; load before "
        f"and after {_text(result['load'][0], 1)}, {_text(result['load'][1], 1)}.",
        *exponents(result["rows"]),
    ]


def reference_row(
    rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The textbook's figures (else the first method's) at the batch and precision of `row`."""
    alike = [
        other
        for other in rows
        if (other["batch"], other["precision"]) == (row["batch"], row["precision"])
    ]
    named = [other for other in alike if other["method"] == TEXTBOOK]
    return next(iter(named or alike), None)


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per method and precision: p in step time ∝ batch^p; 1 is linear."""
    lines = []
    for method, precision in dict.fromkeys((row["method"], row["precision"]) for row in rows):
        own = [row for row in rows if (row["method"], row["precision"]) == (method, precision)]
        sizes = [row["batch"] for row in own]
        if len(set(sizes)) > 1:
            power = exponent(sizes, [statistics.median(row["step_ms"]) for row in own])
            lines.append(f"{method} {precision}: step time grows with batch^{power:.2f}.")
    return lines


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """p of time = c · size^p, by least squares on logarithms; 1 is linear."""
    points = ([math.log(value) for value in values] for values in (sizes, times))
    return statistics.linear_regression(*points).slope


def compare_with(previous: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What got slower, larger or needs more memory by SLOWER_FROM or more, one line each; may be
    [].

    Step times are compared as ratios to the reference method of their own run, so that a busier or
    slower machine makes no difference.
    """
    before = {_key(row): row for row in previous["rows"]}
    lines = []
    for row in current["rows"]:
        old = before.get(_key(row))
        if old is None:
            continue
        for what, measure in (
            ("step time / reference", _relative_step),
            ("peak memory", lambda row, rows: row["peak_mib"]),
            ("adapter size", lambda row, rows: row["adapter_bytes"]),
        ):
            then, now = measure(old, previous["rows"]), measure(row, current["rows"])
            if then and now and now / then >= SLOWER_FROM:
                lines.append(
                    f"{row['method']} batch {row['batch']} {row['precision']}: {what} "
                    f"{then:.3g} -> {now:.3g} ({now / then - 1:+.0%})."
                )
    return lines


def _relative_step(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    reference = reference_row(rows, row)
    return None if reference is None or reference is row else step_ratio(row, reference)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["batch"], row["precision"]


def _cells(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> dict[str, str]:
    """The figures of one row by the heads of their columns."""
    step = statistics.median(row["step_ms"])
    plain = row["plain_inference_ms"]
    cells = [
        row["method"],
        str(row["batch"]),
        row["precision"],
        f"{step:.0f}",
        f"{spread(row['step_ms']):.0f}",
        *(f"{statistics.median(row[f'{part}_ms']):.0f}" for part in TIMES[2:5]),
        "" if reference is None else f"{step_ratio(row, reference):.2f}",
        "" if not row["floor_ms"] else f"{step / row['floor_ms']:.2f}",
        _text(row["peak_mib"]),
        _text(row["resident_mib"]),
        f"{row['adapter_bytes'] / 1e3:.0f}",
        _ratio(row["merged_ms"], plain),
        _ratio(row["unmerged_ms"], plain),
    ]
    return dict(zip(HEADS, cells, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def _ratio(values: Sequence[float], plain: Sequence[float]) -> str:
    if not values:
        return ""
    ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
    return f"{ratio:.2f}"


def _text(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
