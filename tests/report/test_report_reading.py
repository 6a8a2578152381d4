"""Result files are read tolerantly where values are absent and strictly where they are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_files import SUMMARY, epoch_line, evaluation, png

from vitune.errors import VituneError
from vitune.report import read_run

Maker = Callable[..., Path]


def test_values_are_those_of_the_files(run_dir: Maker) -> None:
    found = read_run(run_dir(evaluations=[evaluation(["a", "b", "c"])]))
    assert [entry.epoch for entry in found.epochs] == [1, 2, 3]
    assert found.epochs[1].train_loss == 1.0 and found.epochs[1].step == 50
    assert found.summary is not None
    assert found.summary.num_trainable_without_head == 288768
    assert found.summary.reported.epoch == 3
    assert [part.num_parameters for part in found.summary.trained_parts] == [27648, 82944]
    assert found.config["method_args"] == {"rank": 1}
    (scored,) = found.evaluations
    assert scored.confusion is not None
    lines = ((16, 3, 1), (1, 16, 3), (3, 1, 16))
    assert scored.confusion.cells == tuple(
        (true, predicted, number)
        for true, line in enumerate(lines)
        for predicted, number in enumerate(line)
    )
    assert scored.confusion.totals == (20, 20, 20)
    assert len(scored.calibration) == 2, "the empty bin is left out"
    low, high = scored.interval
    assert low == pytest.approx(0.6822, abs=5e-4) and high == pytest.approx(0.8817, abs=5e-4)


def test_absent_values_read_as_none(run_dir: Maker) -> None:
    lines = [{"epoch": 1}, epoch_line(2, val_loss=float("inf"), lr=None)]
    found = read_run(run_dir(summary={"method": "x"}, epochs=lines, config=None))
    assert found.epochs[0].train_loss is None
    assert found.epochs[1].val_loss is None and found.epochs[1].lr is None
    assert found.summary is not None and found.summary.reported.epoch is None
    assert found.summary.remarks == () and found.summary.trained_parts == ()
    assert found.config == {} and found.evaluations == () and found.plots == ()


def test_the_later_line_of_an_epoch_counts(run_dir: Maker) -> None:
    lines = [epoch_line(2), epoch_line(1), epoch_line(2, train_loss=0.125)]
    found = read_run(run_dir(epochs=lines))
    assert [entry.epoch for entry in found.epochs] == [1, 2]
    assert found.epochs[1].train_loss == 0.125


def test_files_being_written_are_not_read(run_dir: Maker) -> None:
    run = run_dir(evaluations=[evaluation(["a", "b", "c"])])
    (run / "evaluation" / ".val.json").write_text("{")
    (run / "evaluation" / "notes.txt").write_text("{")
    assert len(read_run(run).evaluations) == 1


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match=r"run folder: got .*nowhere.*vitune train"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("metrics.jsonl", '{"epoch": 1}\n\n{"epoch": 2, "tr', r"metrics\.jsonl line 3: got '\{"),
        ("metrics.jsonl", '{"epoch": 1}\n[2]\n', r"metrics\.jsonl line 2: got \[2\].*mapping"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics\.jsonl line 1: epoch: got None.*a value"),
        ("metrics.jsonl", '{"epoch": 1.5}', r"line 1: epoch: got 1\.5, expected a whole number"),
        ("metrics.jsonl", '{"epoch": 1, "lr": "x"}', r"lr: got 'x', expected a number"),
        ("metrics.jsonl", '{"epoch": 1, "lr": true}', r"lr: got True, expected a number"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "val_accuracy": 83.5}',
            r"val_accuracy: got 83\.5, expected a number in \[0, 1\]",
        ),
        ("metrics.jsonl", f'{{"epoch": 1, "lr": 1{"0" * 400}}}', r"lr: got 1.*below 1e308"),
        ("metrics.jsonl", "1" * 5000, r"metrics\.jsonl line 1: got .*expected JSON"),
        ("summary.json", '{"method":\n"x",\n}', r"summary\.json line 3: got '\}', expected JSON"),
        ("summary.json", "[" * 100_000, r"summary\.json line 1: .*expected JSON"),
        ("summary.json", "{}", r"summary\.json: method: got None"),
        ("summary.json", '{"method": 3}', r"method: got 3, expected a string"),
        ("summary.json", '{"method": "x", "mergeable": 1}', r"mergeable: got 1, expected true"),
        ("summary.json", '{"method": "x", "versions": []}', r"versions: got \[\], expected a map"),
        ("summary.json", '{"method": "x", "trained_parts": {}}', r"got \{\}, expected a list"),
        (
            "summary.json",
            '{"method": "x", "trained_parts": [{"count": 1}]}',
            r"trained_parts\[0\]: role: got None",
        ),
        ("config.yaml", "a: 1\nb: [1, 2\nc: 3\n", r"config\.yaml line 3: got .* expected YAML"),
        ("config.yaml", "- 1\n", r"config\.yaml: got \[1\], expected a mapping"),
        ("evaluation/test.json", '{"top1": 0.5}', r"test\.json: num_images: got None"),
        ("evaluation/test.json", '{"top1": 0.5, "num_images": 0}', r"num_images: got 0"),
        (
            "evaluation/test.json",
            '{"top1": 1, "num_images": 2, "classes": ["a"], "confusion": [[1], [2]]}',
            r"confusion: got 2 lists, expected 1",
        ),
        (
            "evaluation/test.json",
            '{"top1": 1, "num_images": 2, "classes": ["a", "b"], "confusion": [[1, 2], [3, -1]]}',
            r"confusion\[1\]: got \[3, -1\], expected 2 counts",
        ),
        (
            "evaluation/test.json",
            '{"top1": 1, "num_images": 2, "mistakes": [{"path": "p", "label": "a",'
            ' "predicted": "b", "thumbnail": "http://x.example/a.png"}]}',
            r"mistakes\[0\]: thumbnail: got 'http.*data URI",
        ),
        (
            "evaluation/test.json",
            '{"top1": 0.9, "num_images": 2, "sha256": "0"}',
            r"test\.json: got values that were edited after vitune wrote them",
        ),
        ("analysis/captions.json", "[]", r"captions\.json: got \[\], expected a mapping"),
        ("analysis/spectrum.json", "nope", r"spectrum\.json line 1: got 'nope'"),
        ("analysis/plot.svg", "<html>", r"plot\.svg: got b'<html>' .*expected .* kind SVG"),
        ("analysis/plot.png", "GIF89a", r"plot\.png: got b'GIF89a' .*expected .* kind PNG"),
    ],
)
def test_wrong_files_are_named_with_line_and_key(
    run_dir: Maker, file: str, text: str, told: str
) -> None:
    path = run_dir() / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(VituneError, match=told) as caught:
        read_run(path.parents[len(Path(file).parts) - 1])
    assert "\n" not in str(caught.value)


def test_text_in_another_encoding(run_dir: Maker) -> None:
    run = run_dir()
    (run / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n{"epoch": 2, "note": "\xe4"}\n')
    with pytest.raises(VituneError, match=r"metrics\.jsonl line 2: got b'\\xe4', expected UTF-8"):
        read_run(run)


def test_plots_come_with_their_captions(run_dir: Maker) -> None:
    run = run_dir()
    (run / "analysis").mkdir()
    for name in ("b.png", "a.png", "c.png"):
        (run / "analysis" / name).write_bytes(png())
    (run / "analysis" / "c.svg").write_text('<svg height="3pt" width="75pt"></svg>')
    (run / "analysis" / "captions.json").write_text(json.dumps({"b.png": "Second."}))
    plots = [(plot.name, plot.caption, plot.width) for plot in read_run(run).plots]
    assert plots == [("c.svg", None, 100.0), ("a.png", None, None), ("b.png", "Second.", None)]


def test_the_summary_may_grow(run_dir: Maker) -> None:
    grown: dict[str, Any] = SUMMARY | {"a_later_key": {"x": 1}}
    assert read_run(run_dir(summary=grown)).summary is not None
