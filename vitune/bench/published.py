"""Accuracies printed in papers, to stand beside what is measured here."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "published"

TABLES = {"vtab1k": "vtab1k_vit_b16.csv", "fgvc": "fgvc_vit_b16.csv"}

NOT_TASKS = frozenset(
    ("method", "pretraining", "mean", "mean_19_tasks", "params_million_with_head", "source")
)


@dataclass(frozen=True)
class PublishedRow:
    """One method in a paper's table.

    Args:
        pretraining: "in21k" (Google's ViT-B/16) or "in21k_augreg" (timm's).
        accuracies: by task, in [0, 1].
        mean: as printed there, in [0, 1].
        source: where it is printed.
    """

    method: str
    pretraining: str
    accuracies: dict[str, float]
    mean: float | None
    source: str


@cache
def published_rows(suite: str) -> tuple[PublishedRow, ...]:
    """The rows shipped for a suite; none for a suite that no paper has."""
    if suite not in TABLES:
        return ()
    with (FOLDER / TABLES[suite]).open(newline="", encoding="utf-8") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def published_row(suite: str, method: str, pretraining: str | None) -> PublishedRow | None:
    """The row of a method on that pre-training, if there is one."""
    for row in published_rows(suite):
        if row.method == method and row.pretraining == pretraining:
            return row
    return None


def suite_of(tasks: Collection[str]) -> str | None:
    """The suite whose published table has all these tasks."""
    for suite in TABLES:
        rows = published_rows(suite)
        if rows and tasks and set(tasks) <= set(rows[0].accuracies):
            return suite
    return None


def pretraining_of(backbone: str) -> str | None:
    """Which published column a backbone's name belongs to; None for any other backbone."""
    name = backbone.lower()
    if "vit_base_patch16_224" not in name and "vit-b_16" not in name:
        return None
    if "vit-b_16.npz" in name or "orig_in21k" in name:
        return "in21k"
    return "in21k_augreg" if "in21k" in name and "in1k" not in name else None


def _row(line: dict[str, str]) -> PublishedRow:
    mean = line.get("mean") or line.get("mean_19_tasks")
    return PublishedRow(
        method=line["method"],
        pretraining=line["pretraining"],
        accuracies={
            key: float(value) / 100 for key, value in line.items() if key not in NOT_TASKS and value
        },
        mean=float(mean) / 100 if mean else None,
        source=line["source"],
    )
