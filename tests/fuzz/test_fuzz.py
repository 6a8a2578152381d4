"""The command line under damaged files, odd options, odd images and odd lists.

    make test                                                     100 cases
    make fuzz                                                     2,000 cases
    pytest tests/fuzz --fuzz-cases 2000 --fuzz-seed 0 -k case0137    one of them

A failure names the damage and the command. Seed and number of cases make the same cases again.
"""

from __future__ import annotations

import json
from pathlib import Path

from cases import (
    COMMANDS,
    MERGED_FILES,
    ON_FILES,
    RUN_FILES,
    SHARES,
    STOPPED_FILES,
    options,
)
from place import Place


def test_case(place: Place, number: int) -> None:
    """Exit code 0 or 2, few lines, no traceback, no hang, and nothing of the user's changed."""
    case = place.cases[number]
    faults = place.faults(case)
    assert not faults, f"{'; '.join(faults)}\n{case}\n{place.told_on('stderr')[-3000:]}"


def test_every_verb_has_a_command() -> None:
    known = options()
    assert set(known) == set(COMMANDS)
    for verb, words in COMMANDS.items():
        spellings = {s for p in known[verb].values() for s in (*p.opts, *p.secondary_opts)}
        assert set(words) <= spellings | set(known[verb]), verb


def test_every_kind_and_every_verb_has_a_case(place: Place) -> None:
    assert {case.kind for case in place.cases} == set(SHARES)
    met = {case.target.rpartition(" ")[0] for case in place.cases if case.kind == "option"}
    assert met == set(COMMANDS)
    damaged = {case.target.partition("/")[0] for case in place.cases if case.kind == "file"}
    assert damaged >= {folder for folder in ON_FILES if folder}


def test_every_file_is_damaged(place: Place) -> None:
    """A file that runs get in future is to be named in cases.py too."""
    for folder, names in (
        ("run", RUN_FILES), ("stopped", STOPPED_FILES), ("merged", MERGED_FILES),
    ):  # fmt: skip
        root = place.template / folder
        found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        assert found <= set(names)
    assert len(list((place.template / "study" / "cells").glob("*.json"))) == 3


def test_the_judge_sees_what_is_wrong(place: Place, tmp_path: Path) -> None:
    """A right command passes; a case that overwrites the user's file would not."""
    from cases import Case
    from place import changes, snapshot

    assert place.faults(Case("option", "info", ["info", "run"])) == []
    before = place.snapshot()
    assert before == snapshot(place.here)
    (place.here / "notes.txt").write_text("another's own.\n")  # as long as what was there
    (place.here / "new").write_text(json.dumps({}))
    told = changes(before, place.snapshot(), ["info", "run"], 0)
    assert told == ["wrote new", "changed notes.txt"]
    place.put_back()
    assert snapshot(place.here) == snapshot(place.template)
