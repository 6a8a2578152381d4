"""What `vitune train` says of the adapted network and the solved probe."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from vitune.cli._progress import TrainingProgress, _head_rate, console, plain_console
from vitune.cli._tables import print_columns
from vitune.data.splits import HeldOut
from vitune.report.closing import _compared, closing_lines
from vitune.runs import Calibration, Reported, RunSummary, Verdict
from vitune.training.accounting import _describe


def verdict(gain: float, error: float | None, loss_gain: float) -> Verdict:
    return Verdict(0.75, 0.75 - gain, gain, error, loss_gain, 0.01, 40)


@pytest.mark.parametrize(
    ("gain", "error", "loss_gain", "told"),
    [
        (0.10, 0.03, 0.2, "adapting helped: 75.0 % against 65.0 %"),
        (0.10, 0.03, -0.2, "adapting helped: 75.0 % against 65.0 %"),
        (-0.10, 0.03, 0.2, "adapting did not help: 75.0 % against 85.0 %"),
        (-0.025, 0.03, 0.12, "adapting helped, by cross-entropy: 75.0 % against 77.5 %"),
        (0.025, 0.03, -0.12, "adapting did not help, by cross-entropy: 75.0 % against 72.5 %"),
        (0.0, 0.0, 0.12, "adapting helped, by cross-entropy: 75.0 % against 75.0 %"),
        (0.5, None, 0.1, "adapting helped, by cross-entropy: 75.0 % against 25.0 %"),
        (0.025, 0.03, 0.008, "adapting made no clear difference: 75.0 % against 72.5 %"),
        (0.0, 0.03, -0.008, "adapting made no clear difference: 75.0 % against 75.0 %"),
        (0.0, 0.0, 0.0, "adapting made no difference: 75.0 % against 75.0 %"),
    ],
)
def test_the_words_agree_with_what_is_kept(
    gain: float, error: float | None, loss_gain: float, told: str
) -> None:
    found = verdict(gain, error, loss_gain)
    said = _compared(found, False, "runs/mine")
    assert said.startswith(told)
    assert found.paid == ("helped" in told)
    assert not (found.paid and found.probe_is_better)
    chose = _compared(found, True, "runs/mine")
    assert chose.startswith("the probe was chosen") and chose.endswith("runs/mine/adapted")
    assert ("validation, by cross-entropy:" in chose) == ("cross-entropy" in told)
    assert ("as adapting made no clear difference" in chose) == ("no clear" in told)
    if "cross-entropy" in told or "no clear" in told:
        lower = "lower" if loss_gain > 0 else "higher"
        assert f"calibrated cross-entropy {abs(loss_gain):.3f} ± 0.010 {lower}" in said


@pytest.mark.parametrize(
    ("gain", "loss_gain", "is_kept"),
    [
        (0.04, -0.2, True),  # accuracy is clear
        (0.02, 0.02, True),  # cross-entropy is
        (0.02, 0.005, False),  # neither: the probe is the simpler model
        (-0.02, -0.005, False),
        (-0.04, 0.2, False),
    ],
)
def test_near_ties_go_to_the_probe(gain: float, loss_gain: float, is_kept: bool) -> None:
    found = verdict(gain, 0.03, loss_gain)
    assert found.paid == is_kept and found.probe_is_better != is_kept


def finished(**facts: Any) -> RunSummary:
    known: dict[str, Any] = {"method": "rlrr", "epochs": 10, "status": "finished", "num_val": 200}
    return RunSummary(**{"reported": Reported("auto", 10, 0.8), **known, **facts})


def test_weights_between_the_probe_and_the_trained_ones_are_named() -> None:
    """Otherwise the accuracy is that of no epoch, and nothing says why."""
    (line,) = closing_lines(finished(share=0.25), "run")
    assert "25 % of the way from the solved probe to epoch 10" in line
    assert not list(closing_lines(finished(share=1.0), "run"))
    assert not list(closing_lines(finished(), "run"))


def test_a_calibration_error_from_a_few_images_is_not_told() -> None:
    """A perfectly calibrated model has 20 to 30 % on ten images in fifteen bins."""
    found = Calibration(3.7, 0.137, 0.162)
    (line,) = closing_lines(finished(calibration=found, num_val=200), "run")
    assert "13.7 % without it, 16.2 % with it" in line
    (line,) = closing_lines(finished(calibration=found, num_val=12), "run")
    assert line.startswith("temperature 3.70 stored with the run, fitted to 12 validation images")
    assert "13.7" not in line


def test_early_stopping_is_told_even_if_the_probe_was_chosen() -> None:
    facts = {"chosen": "probe", "reported": Reported("probe", 0, 0.8), "epochs": 7}
    (line,) = closing_lines(finished(**facts, status="stopped"), "run")
    assert line == "validation loss stopped improving: stopped after epoch 7"
    assert not list(closing_lines(finished(**facts), "run"))


def test_one_image_is_not_images() -> None:
    one = replace(verdict(0, None, 0), num_images=1)
    assert "on 1 validation image," in _compared(one, False, "run")


def test_a_rate_of_its_own_does_not_mean_a_start_at_the_probe() -> None:
    assert _head_rate(finished(head_lr=1e-3, start="probe")).endswith("from the solved probe)")
    assert _head_rate(finished(head_lr=1e-3, start="plain")) == " (classifier 0.001)"


@pytest.mark.parametrize("name", ["runs/[red]x", "runs[/old]", "runs/:cat:"])
def test_paths_and_names_are_printed_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In rich's markup these would be a colour, an error and an emoji."""
    facts = RunSummary(method="rlrr", method_title="RLRR", backbone=name, num_train=1, num_val=1)
    TrainingProgress().described(facts)
    assert f"RLRR on {name}: " in capsys.readouterr().out
    console.print(f"report: {name}/report.html", soft_wrap=True)
    print_columns([name], [[name]])
    assert capsys.readouterr().out.count(name) == 3
    plain_console(stderr=True).print(name)
    assert capsys.readouterr().err == f"{name}\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_breaks_lines_between_words(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "one two three four five six seven eight"
    paper, path = plain_console(), "runs/" + "x" * 50
    paper.file, paper.width = io.StringIO(), 30
    monkeypatch.setattr(type(paper), "is_terminal", property(lambda self: is_terminal))
    paper.print(whole, soft_wrap=True)
    paper.print(f"report: {path}", soft_wrap=True)
    first, *rest = paper.file.getvalue().splitlines()
    assert first.rstrip() == ("one two three four five six" if is_terminal else whole)
    assert rest[-1] == f"report: {path}", "whole, to be copied"


def test_lines_do_not_wrap_where_nobody_asked_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"num_train": 1000, "num_val": 250, "num_classes": 3000, "num_head": 10}
    held_out = "250 images of training, stratified, seed 0"
    facts = finished(backbone="b" * 60, held_out=held_out, lr=0.006, head_lr=0.0006, start="probe",
                     weight_decay=1e-4, precision="fp32", device="d" * 60, **counts)  # fmt: skip
    TrainingProgress().described(facts)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "validation images of 3,000 classes" in lines[1]


@pytest.mark.parametrize(("number", "words"), [(1, "1 image of"), (1200, "1,200 images of")])
def test_one_image_held_out_is_not_images(number: int, words: str) -> None:
    assert str(_describe(HeldOut(number, 0, number))).startswith(words)
