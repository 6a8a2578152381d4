"""Remarks on a set of images: what is odd, how often, which images, and whether it does harm."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.data.checks import DISJOINT, training_name
from vitune.data.formats import counted_suffixes, suffix_hint
from vitune.data.records import ImageList, Record, shown_class

TOLD = 20
"""Number of names that a run's files keep per remark."""

SIXTEEN_BITS = (".png", ".apng", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
"""File types, of those that are read, that can hold 16 bits per pixel."""

RARE = 5
"""The largest class has more than this many times the images of a class that is remarked on."""


@dataclass(frozen=True)
class Remark:
    """One kind of oddity.

    Args:
        kind: for programs.
        text: what it is, with the number, for people.
        names: the files, pairs of files, or classes concerned.
        is_fault: training refuses it, or learns something wrong from it.
    """

    kind: str
    text: str
    names: tuple[str, ...]
    is_fault: bool = False

    def as_dict(self, most: int | None = TOLD) -> dict[str, Any]:
        """The remark for JSON, with at most `most` names."""
        return {
            "kind": self.kind,
            "text": self.text,
            "is_fault": self.is_fault,
            "num": len(self.names),
            "names": list(self.names[:most]),
        }


def remarks_on(
    images: ImageList, splits: Iterable[str], content: Mapping[str, Sequence[bytes]]
) -> tuple[Remark, ...]:
    """Remarks on the listing of `splits`, before any pixel is decoded.

    Args:
        content: one key per record and split; equal keys mean the same file bytes.
    """
    chosen = [name for name in splits if name in images.splits]
    records = [record for name in chosen for record in images.splits[name]]
    keys = [key for name in chosen for key in content[name]]
    found = (
        *_contradictions(records, keys, images.classes),
        _alike_classes(records, images.classes),
        _rare_classes(records, images.classes),
        _unread(images.unread),
        _loose(images.loose),
    )
    return tuple(oddity for oddity in found if oddity is not None)


def remarks_on_groups(images: ImageList) -> tuple[Remark, ...]:
    """Groups on both sides of the source's own splits, and classes that cannot be validated.

    Only names are read, also of the test split.
    """
    found = (_divided_groups(images), _lone_groups(images))
    return tuple(oddity for oddity in found if oddity is not None)


def remark(
    kind: str, what: str, why: str, names: Sequence[str], *, is_fault: bool = False
) -> Remark | None:
    """The remark "N <what> <why>" on `names`; None if there are none."""
    if not names:
        return None
    plural = what if len(names) == 1 else what + ("es" if what.endswith("s") else "s")
    return Remark(kind, f"{len(names):,} {plural} {why}", tuple(names), is_fault)


def skipped(names: Sequence[str]) -> Remark | None:
    """Files left out because they are missing or cannot be decoded."""
    return remark("skipped", "unreadable image", "skipped", names, is_fault=True)


def nearly_black(names: Sequence[str]) -> Remark | None:
    """Images whose pixels use only the lowest sixteenth of their range."""
    why = "nearly black"
    if any(name.lower().endswith(SIXTEEN_BITS) for name in names):
        why += " as read (12-bit greys in a 16-bit file are: save them with 8 bits)"
    return remark("nearly_black", "image", why, names)


def _contradictions(
    records: Sequence[Record], keys: Sequence[bytes], classes: Sequence[str]
) -> Iterator[Remark | None]:
    """Images with two labels: one path listed twice, or equal files."""
    together: dict[bytes, list[Record]] = defaultdict(list)
    for record, key in zip(records, keys, strict=True):
        together[key].append(record)
    listed, copied = [], []
    for same in together.values():
        first = same[0]
        for other in same[1:]:
            if other.label != first.label:
                one, two = classes[first.label], classes[other.label]
                if _is_same_file(first, other):
                    listed.append(f"{first.name} ({one}, {two})")
                else:
                    copied.append(f"{first.name} ({one}) is {other.name} ({two})")
                break
    yield remark("two_labels", "image", "listed under two labels", listed, is_fault=True)
    yield remark("two_classes", "image", "in two classes", copied, is_fault=True)


def _is_same_file(one: Record, other: Record) -> bool:
    if not isinstance(one.image, Path) or not isinstance(other.image, Path):
        return one.name == other.name
    return os.path.normpath(one.image) == os.path.normpath(other.image)


def _alike_classes(records: Iterable[Record], classes: Sequence[str]) -> Remark | None:
    """Classes whose names differ only in case, spaces or Unicode form."""
    counts = Counter(record.label for record in records)
    alike: dict[str, list[int]] = defaultdict(list)
    for label in sorted(counts):
        plain = unicodedata.normalize("NFKC", classes[label]).casefold()
        alike[" ".join(plain.replace("_", " ").replace("-", " ").split())].append(label)
    groups = [
        ", ".join(
            f"{shown_class(classes[label], [classes[other] for other in labels])} "
            f"({counts[label]:,} images)"
            for label in labels
        )
        for labels in alike.values()
        if len(labels) > 1
    ]
    return remark("alike_classes", "class", "written in several ways", groups)


def _rare_classes(records: Iterable[Record], classes: Sequence[str]) -> Remark | None:
    """Classes with so few images beside the largest that a classifier will seldom answer them."""
    counts = Counter(record.label for record in records)
    if not counts:
        return None
    largest, most = counts.most_common(1)[0]
    rare = sorted((n, classes[label]) for label, n in counts.items() if RARE * n < most)
    why = (
        f"with fewer than a fifth of the {most:,} images of {classes[largest]!r} ('vitune "
        "rebalance' makes a trained run answer as if all were equally common)"
    )
    return remark("rare_classes", "class", why, [f"{name!r} ({n:,})" for n, name in rare])


def _divided_groups(images: ImageList) -> Remark | None:
    groups = {
        split: Counter(record.group for record in records if record.group is not None)
        for split, records in images.splits.items()
    }
    where: dict[str, dict[str, int]] = defaultdict(dict)
    for first, second in DISJOINT:
        for name in groups.get(first, {}).keys() & groups.get(second, {}).keys():
            where[name].update({first: groups[first][name], second: groups[second][name]})
    divided = [
        f"{name} ({', '.join(f'{split} {n:,}' for split, n in where[name].items())})"
        for name in sorted(where)
    ]
    why = "in more than one split: scores promise too much for other groups"
    return remark("divided_groups", "group", why, divided, is_fault=True)


def _lone_groups(images: ImageList) -> Remark | None:
    """Classes of which nothing can be held out, because all their images belong together."""
    training = training_name(images)
    if training is None or "val" in images.splits:
        return None
    seen: dict[int, set[str | None]] = defaultdict(set)
    for record in images.splits[training]:
        seen[record.label].add(record.group)
    lone = [images.classes[label] for label, groups in sorted(seen.items()) if _is_one(groups)]
    return remark("lone_groups", "class", "of one group, absent from validation", lone)


def _is_one(groups: set[str | None]) -> bool:
    return len(groups) == 1 and None not in groups


def _unread(names: Sequence[str]) -> Remark | None:
    kinds = f"of unread kinds ({counted_suffixes(names)}; {suffix_hint(names)})"
    return remark("unread", "file", kinds, names)


def _loose(names: Sequence[str]) -> Remark | None:
    return remark("loose", "image", "outside the class folders, not read", names)
