"""Whether the files that a study's results depend on are unchanged."""

from __future__ import annotations

from collections.abc import Sequence

from vitune.bench.study.cells import CellResult
from vitune.bench.study.file_hashes import combined, hashes_of_files, hashes_of_source
from vitune.bench.study.plan import Study
from vitune.data import open_source
from vitune.errors import VituneError


def changed_since(study: Study, results: Sequence[CellResult]) -> list[str]:
    """A sentence for every task and backbone whose files have changed since its runs.

    Files are hashed (once; see `vitune.data.content_hash`), nothing is decoded or loaded. Files
    that are not on this machine cannot be compared and are skipped.
    """
    return [*_changed_images(study, results), *_changed_weights(results)]


def _changed_images(study: Study, results: Sequence[CellResult]) -> list[str]:
    notes = []
    for task in study.tasks:
        seen = [r.source for r in results if r.task == task.name and r.source]
        if not seen:
            continue
        try:
            now = combined(hashes_of_source(open_source(task.data)))
        except (VituneError, OSError):
            continue
        old = sum(source != now for source in seen)
        if old:
            notes.append(
                f"{task.name}: the images or labels of {task.data} have changed since {old} of "
                f"{len(seen)} runs. Run the study again."
            )
    return notes


def _changed_weights(results: Sequence[CellResult]) -> list[str]:
    notes = {}
    for result in results:
        if not result.weight_files:
            continue
        backbone = result.config["backbone"]
        try:
            now = hashes_of_files(backbone, result.config.get("checkpoint"))
        except (VituneError, OSError):
            continue
        if {path.name: value for path, value in now.items()} != result.weight_files:
            notes[backbone] = (
                f"The files of backbone {backbone} have changed since its runs. Run the study "
                "again."
            )
    return list(notes.values())
