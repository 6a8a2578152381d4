"""Images that belong together: of one patient, one object, one scene, one video.

A network recognises the object or the scene itself, so images of one group must not lie on both
sides of a split: validation would promise more than images of other objects will keep.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitune.data.records import ImageList, Record
from vitune.data.source import open_source
from vitune.data.split import Split
from vitune.errors import DataError

Indices = npt.NDArray[np.int64]

ATTEMPTS = 50
"""Orders in which groups are tried for a hold-out; the best division counts."""

MOST_STEPS = 100_000
"""Groups looked at over all attempts; with more groups, fewer orders are tried."""


def with_groups(images: ImageList, pattern: str) -> ImageList:
    r"""The same images, each in the group that a regular expression finds in its path.

    The path is relative to the data folder, with "/" on every system, for example
    "train/cat/tom_03.jpg". The group is the text that matches, or the pattern's (captured) parts
    if it has any: `cat/[a-z]+` and `(\w+)_\d+\.jpg` both put the images of one cat together.

    Raises:
        DataError: not a regular expression, a path in which nothing is found, all images in one
            group, or every image in its own.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise DataError(
            f"--groups: got '{pattern}' ({error}), expected a regular expression that finds a "
            "group's name in a path."
        ) from None
    root = _root(images.spec)
    splits: dict[str, tuple[Record, ...]] = {}
    names: set[str] = set()
    for split, records in images.splits.items():
        grouped = []
        for record in records:
            path = _path_below(root, record)
            found = search(path)
            if found is None or not found.group(0):
                raise DataError(
                    f"--groups: got '{pattern}', which finds nothing in {path!r}, expected a "
                    "regular expression that finds a group's name in every path."
                )
            name = "/".join(part or "" for part in found.groups()) or found.group(0)
            grouped.append(replace(record, group=name))
            names.add(name)
        splits[split] = tuple(grouped)
    _require_several(names, sum(map(len, splits.values())), pattern)
    return replace(images, splits=splits)


def _require_several(names: set[str], num_images: int, pattern: str) -> None:
    if len(names) == 1:
        only = next(iter(names))
        raise DataError(
            f"--groups: got '{pattern}', which finds {only!r} in every path, expected several "
            "groups."
        )
    if len(names) == num_images:
        raise DataError(
            f"--groups: got '{pattern}', which puts each of the {num_images:,} images into its own "
            "group, expected groups of several images."
        )


def _root(spec: str) -> Path:
    path = Path(spec).expanduser()
    return path if path.is_dir() else path.parent


def _path_below(root: Path, record: Record) -> str:
    """The record's path below the data folder, or all of it if it lies elsewhere."""
    if not isinstance(record.image, Path):
        return record.name
    path = record.image
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def group_numbers(*splits: Sequence[Record]) -> list[Indices | None]:
    """For each split a number per image, the same for all images of a group.

    None for a split without groups. An image without a group among others is alone in its own.
    """
    names = sorted({r.group for records in splits for r in records if r.group is not None})
    number = {name: place for place, name in enumerate(names)}
    numbered: list[Indices | None] = []
    free = len(names)
    for records in splits:
        if all(record.group is None for record in records):
            numbered.append(None)
            continue
        found = []
        for record in records:
            if record.group is None:
                found.append(free)
                free += 1
            else:
                found.append(number[record.group])
        numbered.append(np.array(found, np.int64))
    return numbered


def in_groups(split: Split, pattern: str | None, spec: str) -> Split:
    """A split of the source `spec` with the groups that `pattern` finds, if one is given.

    As in `load_splits`, a pattern wins over a table's column.

    Raises:
        DataError: see `with_groups`.
    """
    if pattern is None:
        return split
    listed = with_groups(open_source(spec), pattern)
    records = {record.name: record for own in listed.splits.values() for record in own}
    (groups,) = group_numbers([records[path] for path in split.paths])
    return replace(split, groups=groups)


def one_per_group(split: Split, seed: int = 0) -> Split:
    """One image of each group, drawn at random: these are independent.

    The split itself if groups are unknown.
    """
    if split.groups is None:
        return split
    order = np.random.default_rng(seed).permutation(len(split))
    _, first = np.unique(split.groups[order], return_index=True)
    return split.subset(np.sort(order[first]))


def linked(*keys: Sequence[Hashable]) -> Indices:
    """Numbers that are equal for items that share a key, or are connected through items that do.

    Args:
        keys: one sequence per kind of key, each with one key per item.

    Shapes: returns (n,).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num = len(keys[0])
    ends, offset = [], num
    for kind in keys:
        places: dict[Hashable, int] = {}
        ends.append(np.array([offset + places.setdefault(key, len(places)) for key in kind]))
        offset += len(places)
    rows, columns = np.tile(np.arange(num), len(keys)), np.concatenate(ends)
    edges = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(offset, offset))
    _, component = connected_components(edges, directed=False)
    return np.asarray(component[:num], np.int64)


def hold_out_groups(
    labels: npt.ArrayLike, groups: Indices, amount: float | int, seed: int
) -> tuple[Indices, Indices]:
    """Divide images into training and validation so that every group lies on one side.

    Groups are taken in random order as long as that brings the number of validation images of each
    class closer to its share, and every class keeps training images. Of many orders the best
    division counts: first that few classes are absent from validation, then that the numbers are
    close. A class whose images are all in one group stays in training.

    Args:
        labels: (n,) class indices.
        groups: (n,) a number per group.
        amount: a fraction of n in (0, 1), or the number of validation images to aim at.
        seed: determines the division.

    Returns:
        (training, validation) indices, each in ascending order.

    Raises:
        DataError: no group can be held out.
    """
    _, label = np.unique(np.asarray(labels), return_inverse=True)
    names, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(label.max()) + 1), np.int64)
    np.add.at(counts, (group, label), 1)
    sizes = counts.sum(0)
    share = amount if isinstance(amount, float) else amount / len(label)
    rng = np.random.default_rng([seed, len(label)])
    best, lowest = None, (np.inf, np.inf)
    for _ in range(max(1, min(ATTEMPTS, MOST_STEPS // len(names)))):
        held, price = _taken(counts, sizes, share, rng.permutation(len(names)))
        if held.any() and price < lowest:
            best, lowest = held, price
    if best is None:
        raise DataError(
            f"hold-out: got {len(names)} groups, none of which can be held out, expected a class "
            "with 2 groups. Add images of other groups or give a validation split."
        )
    return np.flatnonzero(~best[group]), np.flatnonzero(best[group])


def _taken(
    counts: Indices, sizes: Indices, share: float, order: Indices
) -> tuple[npt.NDArray[np.bool_], tuple[float, float]]:
    """The groups held out in this order, and how far that is from the wish.

    Shapes: counts (groups, classes); sizes (classes,); returns (groups,) and
        (classes absent from validation, squared distance to the wished numbers).
    """
    taken = np.zeros(len(counts), bool)
    held = np.zeros(len(sizes), np.int64)
    price = _price(held, sizes, share)
    for place in order:
        more = held + counts[place]
        if (more >= sizes).any():
            continue
        dearer = _price(more, sizes, share)
        if dearer < price:
            taken[place], held, price = True, more, dearer
    return taken, price


def _price(held: Indices, sizes: Indices, share: float) -> tuple[float, float]:
    distance = ((held - share * sizes) ** 2 / sizes).sum()
    return float((held == 0).sum()), float(distance)
