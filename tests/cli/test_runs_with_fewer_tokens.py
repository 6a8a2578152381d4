"""Runs trained with merged or dropped tokens, as a user evaluates, predicts and merges them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_images import TRAIN, Failed, paint

from vitune.cli import run

PLANS = {"merged": "merge:0.5@0", "training": "merge:0.5@0:train", "dropped": "drop:0.5"}
Predicted = Callable[[Path], list[tuple[str, float]]]


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run by steps on a frozen backbone for each plan: they differ in their tokens alone."""
    folder = tmp_path_factory.mktemp("runs")
    for name, plan in PLANS.items():
        words = ["--data", str(photos), "--out", str(folder / name), "--tokens", plan]
        assert run([*TRAIN, *words, "--start", "plain", "--epochs", "1"]) == 0
    return {name: folder / name for name in PLANS}


@pytest.fixture
def predicted(photos: Path, tmp_path: Path) -> Predicted:
    """Class and probability of every photo, as `vitune predict` writes them."""

    def call(path: Path) -> list[tuple[str, float]]:
        out = tmp_path / "predicted.csv"
        assert run(["predict", str(path), str(photos), "--out", str(out), "--force"]) == 0
        rows = csv.DictReader(out.read_text().splitlines())
        return [(row["class_1"], float(row["probability_1"])) for row in rows]

    return call


def with_tokens(path: Path, copy: Path, tokens: object) -> Path:
    """A copy of a run whose card names other tokens."""
    shutil.copytree(path, copy)
    file = copy / "adapter" / "vitune.json"
    card = {**json.loads(file.read_text()), "tokens": tokens, "checksums": {}}
    file.write_text(json.dumps(card))
    return copy


def test_merged_tokens_decide_what_is_predicted(
    runs: dict[str, Path], predicted: Predicted, tmp_path: Path
) -> None:
    """With the tokens of its card, in the run and in the model that it is merged into."""
    found = predicted(runs["merged"])
    assert len(found) == 30
    assert found != predicted(with_tokens(runs["merged"], tmp_path / "all", "keep"))
    assert run(["merge", str(runs["merged"]), "--out", str(tmp_path / "whole")]) == 0
    whole = predicted(tmp_path / "whole")
    assert [name for name, _ in whole] == [name for name, _ in found]
    assert [p for _, p in whole] == pytest.approx([p for _, p in found], abs=1e-4)


@pytest.mark.parametrize("name", ["training", "dropped"])
def test_plans_for_training_alone_leave_inference_its_tokens(
    name: str, runs: dict[str, Path], predicted: Predicted, tmp_path: Path
) -> None:
    found = predicted(runs[name])
    assert found == predicted(runs[name])
    assert found == predicted(with_tokens(runs[name], tmp_path / "all", "keep"))


@pytest.mark.parametrize("name", ["merged", "dropped"])
def test_evaluation_scores_what_is_predicted(
    name: str,
    runs: dict[str, Path],
    predicted: Predicted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = paint(tmp_path / "others", 4, seed=1)
    assert run(["evaluate", str(runs[name]), "--data", str(others)]) == 0
    out = tmp_path / "others.csv"
    assert run(["predict", str(runs[name]), str(others), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    right = sum(Path(row["path"]).parent.name == row["class_1"] for row in rows)
    capsys.readouterr()
    assert run(["info", str(runs[name]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == PLANS[name] and facts["speed"] == "custom"
    (accuracy,) = [value for name, value in facts.items() if name.startswith("accuracy on ")]
    assert len(rows) == 12 and accuracy == pytest.approx(right / 12)


UNUSABLE = {
    "prune:0.5": "damaged card (--tokens: got 'prune:0.5', expected keep",
    "merge:0.9@0": "--tokens: got 'merge:0.9@0', expected a share of at most 0.5",
    "merge:0.5@9": "--tokens: got 'merge:0.5@9' on 6 blocks, expected some of the blocks 0 to 4",
    "": "damaged card (--tokens: got ''",
}


@pytest.mark.parametrize("tokens", UNUSABLE)
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_card_with_unusable_tokens_is_one_line(
    tokens: str, verb: str, runs: dict[str, Path], photos: Path, tmp_path: Path, failed: Failed
) -> None:
    spoilt = with_tokens(runs["merged"], tmp_path / "spoilt", tokens)
    words = [spoilt, photos] if verb == "predict" else [spoilt]
    assert UNUSABLE[tokens] in failed(verb, *words)


def test_tokens_belong_to_the_run(
    runs: dict[str, Path], photos: Path, tmp_path: Path, failed: Failed
) -> None:
    own = runs["merged"]
    assert "unknown option --tokens" in failed("evaluate", own, "--tokens", "keep")
    assert "unknown option --tokens" in failed("predict", own, photos, "--tokens", "keep")
    again = ["train", "--out", own, "--resume"]
    told = failed(*again, "--tokens", "drop:0.5")
    assert "got tokens='drop:0.5', expected the run's own 'merge:0.5@0'" in told
    assert "got 'exact' with --tokens merge:0.5@0" in failed(*again, "--speed", "exact")
    told = failed("exits", "add", own, "--at", "1", "--out", tmp_path / "exits")
    assert "with --tokens merge:0.5@0, expected one that keeps every token" in told
