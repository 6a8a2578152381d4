"""Accuracies printed in papers, to compare with what is measured here."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "published"

TABLES = {"vtab1k": "vtab1k_vit_b16.csv", "fgvc": "fgvc_vit_b16.csv"}

PRETRAINING_OF_NAME = {
    "vit_base_patch16_224.orig_in21k": "in21k",
    "hf:google/vit-base-patch16-224-in21k": "in21k",
    "vit_base_patch16_224.augreg_in21k": "in21k_augreg",
    "vit_base_patch16_224_in21k": "in21k_augreg",
}

PRETRAINING_OF_FILE = (
    (r"ViT-B_16\.npz", "in21k"),
    (r"B_16-i21k-300ep-lr_0\.001-aug_medium1-wd_0\.1-do_0\.0-sd_0\.0\.npz", "in21k_augreg"),
)
"""Names under which Google publishes the two sets of weights."""

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
    """The rows shipped for a suite; none if no paper reports on it."""
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


def pretraining_of(config: Mapping[str, Any]) -> str | None:
    """Which published column a run's backbone belongs to; None for any other backbone.

    The published rows are of ViT-B/16 at 224 pixels. A local file is recognised by its name, since
    the architecture's name says nothing about the weights in it.

    Args:
        config: of a run: backbone, checkpoint, image_size.
    """
    if config.get("image_size") not in (None, 224):
        return None
    name, _, written = str(config["backbone"]).partition("@")
    file = written or config.get("checkpoint")
    if file is None:
        return PRETRAINING_OF_NAME.get(name)
    if not name.startswith("vit_base_patch16_224"):
        return None
    stem = Path(str(file)).name
    return next((column for form, column in PRETRAINING_OF_FILE if re.fullmatch(form, stem)), None)


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
