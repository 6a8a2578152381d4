"""A run stores a result only for the images and weights that it was planned with."""

from __future__ import annotations

from vitune.bench.study.cells import Cell
from vitune.bench.study.file_hashes import hash_of, hashes_of_files
from vitune.bench.study.workbench import TaskData, Workbench
from vitune.data import Split, Splits
from vitune.errors import BackboneError, DataError


def planned_data(cell: Cell, bench: Workbench) -> TaskData:
    """The cell's images, which must be those that it was planned with.

    Raises:
        DataError: a file changed since.
        BackboneError: the weights did.
    """
    for may_read_again in (True, False):
        facts = bench.facts(cell.config)
        data = bench.task(cell.config, cell.split_seed, allow_overlap=cell.allow_overlap)
        found = data.hashes(refit=cell.config.refit, scored_on=cell.scored_on)
        if facts.identity == cell.identity and found == cell.split_hashes:
            return data
        if may_read_again:  # this process may hold data older than the plan
            bench.forget()
    if facts.identity != cell.identity:
        raise _changed_weights(cell)
    names = [name for name, value in found.items() if value != cell.split_hashes.get(name)]
    raise _changed_images(cell, ", ".join(names))


def planned_test(cell: Cell, bench: Workbench, splits: Splits) -> Split:
    """The test split, decoded from the same bytes that the cell was planned with."""
    for may_read_again in (True, False):
        split = bench.open_test(cell.config, splits.classes)
        if hash_of(split) == cell.split_hashes["test"]:
            return split
        if may_read_again:
            bench.forget()
    raise _changed_images(cell, "test")


def require_planned_weights(cell: Cell, bench: Workbench) -> None:
    """Check that the backbone's files, read again by the run, are still those that were hashed."""
    now = hashes_of_files(cell.config.backbone, cell.config.checkpoint)
    if now != bench.facts(cell.config).files:
        bench.forget()
        raise _changed_weights(cell)


def _changed_images(cell: Cell, which: str) -> DataError:
    return DataError(
        f"images of {cell.config.data!r}: got other files of {which} than the study was planned "
        "with, expected them not to change while it runs. Run the study again."
    )


def _changed_weights(cell: Cell) -> BackboneError:
    return BackboneError(
        f"backbone {cell.config.backbone!r}: got other weights or preprocessing than the study was "
        "planned with, expected its files not to change while it runs. Run the study again."
    )
