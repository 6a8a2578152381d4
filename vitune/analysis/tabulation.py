"""Analysis results as flat records, CSV text and JSON values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitune.analysis.weight_change import ChangedWeight, WeightChange

DIGITS = 7
"""Significant digits in files."""


def weight_records(weights: Sequence[ChangedWeight]) -> list[dict[str, Any]]:
    """One flat record per weight: names first, then the single-number figures."""
    records = []
    for weight in weights:
        record: dict[str, Any] = {
            "name": weight.name,
            "role": weight.role,
            "block": weight.block,
            "part": weight.part,
            "relative_deviation": weight.relative_deviation,
        }
        if weight.change is not None:
            record |= _figures(weight.change)
        records.append(rounded(record))
    return records


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """CSV with a heading for every key of any record, in the order of first appearance."""
    headings = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, headings, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def rounded(value: Any) -> Any:
    """`value` as plain JSON values with floats cut to DIGITS significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def _figures(change: WeightChange) -> dict[str, Any]:
    """The single-number figures of a matrix."""
    figures: dict[str, Any] = {
        "out_features": change.shape[0],
        "in_features": change.shape[1],
        "exact": change.exact,
        "values_error": change.values_error,
        "spectrum_distortion": change.spectrum_distortion,
        "effective_rank": change.effective_rank,
        "stable_rank": change.stable_rank,
    }
    if change.basis_loss is not None:
        figures |= {"left_loss": change.basis_loss.left, "right_loss": change.basis_loss.right}
    figures["left_intruders"] = change.intruders.left
    figures["right_intruders"] = change.intruders.right
    if change.core is not None:
        figures |= {f"core_{name}": value for name, value in asdict(change.core).items()}
    for part in change.subspaces:
        label = f"top_{part.k}" if part.energy is None else f"energy_{part.energy:g}"
        figures |= {
            f"{label}_k": part.k,
            f"{label}_left_share": part.left_share,
            f"{label}_right_share": part.right_share,
            f"{label}_left_max_degrees": part.left_degrees[-1],
            f"{label}_right_max_degrees": part.right_degrees[-1],
            f"{label}_mean_degrees": part.mean_degrees,
            f"{label}_gap": part.gap,
            f"{label}_error_degrees": part.error_degrees,
        }
    return figures
