"""summary.json as a typed record: written, read again, older and newer than this version."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vitune.errors import VituneError
from vitune.run_summary import _READERS, Calibration, SolvedFacts, Verdict
from vitune.runs import Oddity, Reported, RunFolder, RunSummary, TrainedPart

WHOLE = RunSummary(
    method="rlrr",
    num_total=1_205_898,
    mergeable=True,
    lr=0.03,
    seed=2**63 - 1,
    versions={"torch": "2.15"},
    remarks=(Oddity("odd", True, 7, ("a.png", "b.png"), "unreadable"),),
    reported=Reported("last", 3, 0.5),
    trained_parts=(TrainedPart("qkv", 4, 384),),
    calibration=Calibration(1.25, 0.2, 0.05),
    probe=SolvedFacts(0.5, 1.5, {"penalty": 0.1}, "validation", "flip", 0.9, (0.02, 0.01), 2.0),
    verdict=Verdict(0.6, 0.5, 0.1, None, 0.2, 0.1, 40),
    chosen="probe",
    asked="rlrr",
)
Written = dict[str, Any]


def read(folder: Path, values: Any) -> RunSummary | None:
    run = RunFolder(folder)
    run.summary.write_text(values if isinstance(values, str) else json.dumps(values))
    return run.read_summary()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_summary() is None
    folder.write_summary(WHOLE)
    assert folder.read_summary() == WHOLE


def test_an_edit_is_told_until_the_checksum_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary(WHOLE)
    values = json.loads(folder.summary.read_text())
    assert read(tmp_path, dict(reversed(values.items()))) == WHOLE  # the layout is free
    values["reported"]["val_accuracy"] = 0.75
    with pytest.raises(VituneError, match=r"summary.json: got values that were edited .* 'sha256'"):
        read(tmp_path, values)
    del values["sha256"]
    found = read(tmp_path, values)
    assert found is not None and found.reported.val_accuracy == 0.75


def test_the_file_keeps_the_names_that_it_always_had() -> None:
    values = WHOLE.as_dict()
    assert values["trained_parts"] == [{"role": "qkv", "count": 4, "parameters": 384}]
    reported = {"which": "last", "epoch": 3, "val_accuracy": 0.5}
    assert values["reported"] == {**reported, "averaged": False}
    assert values["remarks"][0]["kind"] == "unreadable"
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(WHOLE.as_dict()))


def test_every_field_has_a_reader() -> None:
    parts = {"calibration", "probe", "verdict", "solved", "privacy"}
    by_hand = {"remarks", "versions", "reported", "trained_parts"} | parts
    assert {item.name for item in fields(RunSummary) if item.type not in _READERS} == by_hand


def test_missing_keys_are_none_and_unknown_ones_passed_over(tmp_path: Path) -> None:
    found = read(tmp_path, {"method": "ssf", "of_next_year": [1], "reported": {"other": 1}})
    assert found == RunSummary(method="ssf")
    assert found.lr is None and found.reported == Reported() and found.trained_parts == ()


def test_runs_before_remarks_say_how_many_images_were_skipped(tmp_path: Path) -> None:
    found = read(tmp_path, {"method": "ssf", "skipped_images": 2})
    assert found is not None
    assert found.remarks == (Oddity("2 unreadable images skipped", True, 2, ()),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", r"summary.json line 1: got '\{', expected JSON"),
        ("[1]", r"summary.json: got \[1\], expected a mapping"),
        ({}, r"summary.json: method: got None, expected a value"),
        ({"method": "a", "num_total": 1.5}, r"num_total: got 1.5, expected a whole number"),
        ({"method": "a", "lr": "x"}, r"lr: got 'x', expected a number"),
        ({"method": "a", "mergeable": 1}, r"mergeable: got 1, expected true or false"),
        ({"method": "a", "device": 1}, r"device: got 1, expected a string"),
        ({"method": "a", "reported": 1}, r"reported: got 1, expected a mapping"),
        ({"method": "a", "reported": {"val_accuracy": 2}}, r"val_accuracy: got 2.0, expected"),
        ({"method": "a", "trained_parts": [{}]}, r"trained_parts\[0\]: role: got None"),
        ({"method": "a", "remarks": [{}]}, r"remarks\[0\]: text: got None"),
    ],
)
def test_damaged_summaries_are_told(tmp_path: Path, values: Written | str, message: str) -> None:
    with pytest.raises(VituneError, match=message):
        read(tmp_path, values)
