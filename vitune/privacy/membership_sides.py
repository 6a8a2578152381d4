"""The two sides of a membership audit: images that trained a run, and images that did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress

from vitune.data import Record, UsedImages, open_source, record_digests, with_groups
from vitune.errors import DataError, VituneError
from vitune.report import counted
from vitune.runs import RunFolder

FEWEST = 10
"""Members, and others, below which no rate is worth stating."""


Listed = list[tuple[Record, bytes]]
"""Images with the sha256 of their content."""


@dataclass(frozen=True)
class Sides:
    """Members, others and the images that the run was watched on, each content once.

    Args:
        members: images that trained the run.
        others: images that neither trained nor validated it.
        val: the run's validation images; empty where it has none, or they are gone.
        notes: what was left out.
    """

    members: Listed
    others: Listed
    val: Listed
    notes: tuple[str, ...]


def recorded_images(run: RunFolder) -> UsedImages:
    """What the run wrote down of its images.

    Raises:
        VituneError: nothing.
        DataError: the list is damaged.
    """
    if not run.config.is_file() or not run.images.is_file():
        raise VituneError(
            f"run: got {str(run.path)!r} without {run.images.name}, expected a run that wrote down "
            "which images trained it. Train it again with vitune train."
        )
    return UsedImages.read(run.images)


def sides_of(
    run: RunFolder,
    used: UsedImages,
    classes: tuple[str, ...],
    data: str | None,
    others: str | None,
    *,
    skip_misplaced: bool,
) -> Sides:
    """Both sides, told by content.

    Args:
        data: None takes what trained the run from its own data.
        others: None takes the test split of the run's data.

    Raises:
        DataError: no such images, other classes, images of the wrong side, or fewer than FEWEST.
    """
    own = run.read_data()
    inside, outside = (
        _listed(
            given or own, classes, test=is_test, needed=is_test and given is None,
            groups=run.read_config().get("groups") if given is None else None,
        )
        for given, is_test in ((data, False), (others, True))
    )  # fmt: skip
    notes: list[str] = []
    trained = used.took_part([digest for _, digest in inside])["train"].tolist()
    if data is None:
        inside, trained = list(compress(inside, trained)), [True] * sum(trained)
    placed = partial(_placed, skip=skip_misplaced, notes=notes)
    members = placed(inside, trained, f"--data {data}", "did not train the run")
    took = used.took_part([digest for _, digest in outside])
    fresh = (~took["train"] & ~took["val"]).tolist()
    name = f"--others {others}" if others else f"the test images of {own}"
    strangers = placed(outside, fresh, name, "trained or validated the run")
    members, strangers = _once(members, notes), _once(strangers, notes)
    for option, found, what in (
        ("--data", members, "images that trained the run"),
        ("--others", strangers, "images that did not train it"),
    ):
        if len(found) < FEWEST:
            raise DataError(f"{option}: got {len(found)} {what}, expected at least {FEWEST}.")
    notes += _group_notes(members, strangers)
    watched = _watched(own, used, classes, notes)
    return Sides(members, strangers, watched, tuple(notes))


def _listed(
    spec: str,
    classes: tuple[str, ...],
    *,
    test: bool,
    needed: bool = False,
    groups: str | None = None,
) -> Listed:
    """Images of a source with their digests: its test split, or all that is no test split.

    Others without a test split are all there is, unless one is needed.
    """
    listed = open_source(spec)
    listed = listed if groups is None else with_groups(listed, groups)
    names = [name for name in listed.splits if (name == "test") == test]
    if needed and not names:
        raise DataError(
            f"--others: got nothing, and {listed.spec} has no test images, expected images of the "
            "same kind that did not train the run. Give --others."
        )
    chosen = {name: listed.splits[name] for name in names or listed.splits}
    images = replace(listed, splits=chosen).relabelled(classes)
    records = [record for found in images.splits.values() for record in found]
    digests = [bytes.fromhex(digest) for digest in record_digests(records)]
    return list(zip(records, digests, strict=True))


def _placed(
    listed: Listed, fits: Sequence[bool], name: str, wrong: str, skip: bool, notes: list[str]
) -> Listed:
    """The images that fit.

    Raises:
        DataError: some do not and `skip` is off.
    """
    num_wrong = len(listed) - sum(fits)
    if num_wrong and not skip:
        first = listed[fits.index(False)][0].name
        raise DataError(
            f"{name}: got {num_wrong} of {len(listed)} images that {wrong} ({first!r} for one), "
            "expected none. Leave them out with --skip-misplaced."
        )
    if num_wrong:
        notes.append(f"{num_wrong:,} images of {name} left out: they {wrong}")
    return list(compress(listed, fits))


def _group_notes(members: Listed, others: Listed) -> list[str]:
    """What is lost where several images show one thing, or nothing."""
    sides = [[record.group for record, _ in side] for side in (members, others)]
    if not any(group is not None for side in sides for group in side):
        return []
    known = [len(set(side) - {None}) + side.count(None) for side in sides]
    return [
        f"members are of {counted(known[0], 'group')}, other images of {known[1]:,}: those of one "
        "group are alike, but intervals and p values take each image for an independent one and "
        "promise too much"
    ]


def _once(listed: Listed, notes: list[str]) -> Listed:
    """The images without repeated content."""
    kept = {digest: (record, digest) for record, digest in reversed(listed)}
    if len(kept) < len(listed):
        notes.append(f"{len(listed) - len(kept):,} repeated images left out")
    return list(reversed(kept.values()))


def _watched(own: str, used: UsedImages, classes: tuple[str, ...], notes: list[str]) -> Listed:
    """The run's validation images, all or none."""
    table = used.tables.get("val")
    wanted = 0 if table is None else len({row.tobytes() for row in table.digests})
    if not wanted:
        return []
    try:
        listed = _listed(own, classes, test=False)
    except DataError:
        listed = []
    watched = used.took_part([digest for _, digest in listed])["val"].tolist()
    found = _once(list(compress(listed, watched)), [])
    if len(found) < wanted:
        notes.append(
            f"the run's validation images are no longer in {own}: what is trained here does without"
        )
        return []
    return found
