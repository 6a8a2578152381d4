"""What must not share a table: two configurations under one name, figures of different kinds."""

from __future__ import annotations

from collections.abc import Sequence

from vitune.bench.study.addressing import deciding
from vitune.bench.study.cells import CellResult
from vitune.errors import VituneError


def require_one_config(results: Sequence[CellResult]) -> None:
    """Check that one name and task mean one configuration, whatever the seed.

    Raises:
        VituneError: two configurations, image sets or backbones under one name.
    """
    seen: dict[tuple[str, str, str, str, str], CellResult] = {}
    for result in results:
        key = (result.label, result.task, result.protocol, result.config["backbone"],
               result.scored_on)  # fmt: skip
        other = seen.setdefault(key, result)
        for what, ours, theirs in (
            ("settings", _comparable(result), _comparable(other)),
            ("images", result.split_hashes, other.split_hashes),
            ("backbone weights", result.fingerprint, other.fingerprint),
            ("backbones", result.identity, other.identity),
        ):
            if ours != theirs:
                raise VituneError(
                    f"results called {result.label!r} on {result.task!r}: got two different "
                    f"{what}{_first_difference(ours, theirs)}, expected one configuration per "
                    "name. "
                    "Give one of the variants another label."
                )


def require_same_images(results: Sequence[CellResult]) -> None:
    """Check that all methods saw the same images of a task, whatever they are called.

    Raises:
        VituneError: a split of a task whose files or labels differ between two results.
    """
    seen: dict[tuple[str, str], tuple[str, CellResult]] = {}
    for result in results:
        for split, found in result.split_hashes.items():
            known, other = seen.setdefault((result.task, split), (found, result))
            if found != known and result.format == other.format:
                raise VituneError(
                    f"table: got two sets of {split} images of task {result.task!r} (of "
                    f"{other.label!r} and of {result.label!r}), expected one: figures on "
                    "different images cannot be compared. Run the study again, or use --split "
                    "for separate rows."
                )


def _comparable(result: CellResult) -> dict[str, object]:
    """The parts of a configuration that determine a result, without the seed."""
    return {name: value for name, value in deciding(result.config).items() if name != "seed"}


def _first_difference(ours: object, theirs: object) -> str:
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ""
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            return f" ({key}: {theirs.get(key)!r} and {ours.get(key)!r})"
    return ""


def require_pure(results: Sequence[CellResult], split_columns: bool) -> None:
    """Check that figures are of one kind, unless each kind gets its own row.

    Raises:
        VituneError: a mixture of backbones, protocols or reported splits.
    """
    for what, kinds in (
        ("backbones", {str(r.config["backbone"]) for r in results}),
        ("protocols", {r.protocol for r in results}),
        ("reported splits", {r.scored_on for r in results}),
    ):
        if len(kinds) > 1 and not split_columns:
            raise VituneError(
                f"table: got {what} {', '.join(sorted(kinds))}, expected one kind: figures of "
                "different kinds cannot be compared. Use --split for separate rows."
            )
