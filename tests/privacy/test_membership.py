"""Attacks on membership: known answers by simulation, runs that leak, refusals, a stopped audit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from scipy.stats import norm

from vitune import fit
from vitune.cli import main
from vitune.errors import OutputError, VituneError
from vitune.privacy import MembershipFound, MembershipSettings, audit_membership, in_words
from vitune.privacy import reference_runs as reference_module
from vitune.privacy.membership import (
    GRID,
    OFFLINE_A,
    chosen_a,
    clopper_pearson,
    dominated,
    estimated_auc,
    judged,
    log_confidences,
    log_ratios,
    most_allowed,
    tpr_at,
)
from vitune.privacy.reference_runs import drawn
from vitune.runs import PrivacySpent, Reported, RunFolder

RNG = np.random.default_rng
CLASSES = tuple("abcdefghijklmnopqrst")


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_normals(shift: float, members: int, others: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = RNG(seed)
    scores = np.concatenate([rng.normal(shift, 1, members), rng.normal(0, 1, others)])
    return scores, np.arange(members + others) < members


def test_two_normals_have_the_textbook_curve() -> None:
    scores, inside = two_normals(1.5, 40_000, 40_000, 0)
    labels = np.zeros(len(scores), np.int64)
    found = judged("m", "loss", scores, inside, labels, ("only",))
    assert found.auc.value == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.005)
    for at, rate in zip(found.at, (0.01, 0.001), strict=True):
        assert at is not None and at.rate == rate
        assert at.fpr.value == pytest.approx(rate)
        assert at.tpr.value == pytest.approx(norm.sf(norm.isf(rate) - 1.5), abs=0.012)
        assert at.tpr.low < at.tpr.value < at.tpr.high
    assert found.fpr[0] == found.tpr[0] == 0 and found.fpr[-1] == found.tpr[-1] == 1
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(found.auc.value)
    (row,) = found.per_class
    assert row.auc == found.auc and row.caught == found.at[0].tpr


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_intervals_hold_the_truth_as_often_as_they_say(shift: float) -> None:
    draws, held_auc, held_tpr = 200, 0, 0
    for seed in range(draws):
        scores, inside = two_normals(shift, 50, 200, seed)
        auc = estimated_auc(scores, inside)
        held_auc += auc.low <= norm.cdf(shift / np.sqrt(2)) <= auc.high
        at = tpr_at(scores[inside], scores[~inside], 0.01)
        assert at is not None
        held_tpr += at.tpr.low <= norm.sf(at.threshold - shift) <= at.tpr.high
    assert held_auc >= 0.92 * draws and held_tpr >= 0.93 * draws


def test_without_a_leak_members_are_not_told_from_others() -> None:
    seen = []
    for seed in range(400):
        scores, inside = two_normals(0.0, 200, 1000, seed)
        at = tpr_at(scores[inside], scores[~inside], 0.01)
        assert at is not None
        seen.append(at.by_chance)
    held = [sum(one <= level for one in seen) / 400 for level in (0.05, 0.5)]
    assert held[0] <= 0.07 and 0.3 <= held[1] <= 0.57
    # Three members and one other in the four first of 103 places.
    at = tpr_at(np.array([5.0, 6, 7]), np.arange(-100.0, 0), 0.01)
    assert at is not None and at.fpr.value == 0.01
    orders = [103 * 102 * 101 * 100 / 24, 3 * 2 * 1 * 100 / 6]
    assert at.by_chance == pytest.approx(orders[1] / orders[0])


def test_a_rate_below_one_of_the_others_has_no_answer() -> None:
    members = np.linspace(0, 1, 50)
    assert tpr_at(members, np.linspace(0, 1, 99), 0.01) is None
    found = tpr_at(members, np.linspace(0, 1, 100), 0.01)
    assert found is not None and found.fpr.value == 0.01
    assert tpr_at(members, np.linspace(0, 1, 999), 0.001) is None
    assert tpr_at(members, np.linspace(0, 1, 1000), 0.001) is not None


def test_ties_are_never_counted_as_recognised() -> None:
    found = tpr_at(np.ones(20), np.ones(200), 0.01)
    assert found is not None and found.tpr.value == 0 and found.fpr.value == 0


def test_perfect_and_reversed_scores_still_have_an_interval() -> None:
    inside = np.arange(60) < 20
    perfect = estimated_auc(inside.astype(float), inside)
    wrong = estimated_auc(-inside.astype(float), inside)
    assert perfect.value == perfect.high == 1 and 0.8 < perfect.low < 0.97
    assert wrong.value == wrong.low == 0 and wrong.high < 0.2
    assert clopper_pearson(0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert clopper_pearson(10, 10).low == pytest.approx(0.025**0.1)
    with pytest.raises(VituneError, match="got 3 members and 0 others"):
        judged("m", "loss", np.zeros(3), np.ones(3, bool), np.zeros(3, np.int64), ("a",))


def test_loss_ranks_as_the_scaled_confidence_does() -> None:
    logits = RNG(0).normal(0, 4, (300, 5))
    labels = RNG(1).integers(0, 5, 300)
    found = log_confidences(logits, labels)
    p = torch.tensor(logits).softmax(1).numpy()[np.arange(300), labels]
    np.testing.assert_allclose(found, np.log(p))
    assert np.array_equal(np.argsort(found), np.argsort(np.log(p / (1 - p))))


def test_ratios_are_those_of_the_formula() -> None:
    target = np.log([0.9, 0.5])
    references = np.log([[0.2, 0.5], [0.4, 0.7], [0.9, 0.1]])
    was_out = np.array([[True, True], [True, False], [False, True]])
    found = log_ratios(target, references, was_out, 0.3)
    wanted = [0.9 / (0.65 * 0.3 + 0.35), 0.5 / (0.65 * 0.3 + 0.35)]
    np.testing.assert_allclose(np.exp(found), wanted)
    np.testing.assert_allclose(np.exp(log_ratios(target, references, was_out, 1.0))[0], 3.0)
    with pytest.raises(VituneError, match="got 1 images that all of them trained on"):
        log_ratios(target, references, np.array([[True, False]] * 3), 0.3)


def test_the_score_against_a_population_ranks_as_the_ratio() -> None:
    ratios, population = RNG(0).normal(0, 1, 200), RNG(1).normal(0, 1, 500)
    for gamma in (1.0, 2.0):
        scores = dominated(ratios, population, gamma)
        compared = np.exp(ratios[:, None] - population[None]) >= gamma
        np.testing.assert_allclose(scores, compared.mean(1))
        assert (np.diff(scores[np.argsort(ratios)]) >= 0).all()


def world(num_runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log confidences of runs on images of very different difficulty, and who trained on what.

    Being trained on adds 1.5 to an image's logit; training noise has a deviation of 0.5.
    """
    rng = RNG(seed)
    difficulty = rng.normal(0, 3, 2000)
    trained = rng.random((num_runs, 2000)) < 0.5
    logits = difficulty + 1.5 * trained + rng.normal(0, 0.5, trained.shape)
    return np.log(expit(logits)), trained


def test_references_see_through_difficulty() -> None:
    confidences, trained = world(9, 0)
    usable = ~trained[1:].all(0)
    inside, out = trained[0][usable], ~trained[1:][:, usable]
    by_loss = estimated_auc(confidences[0][usable], inside)
    a = chosen_a(confidences[1:], trained[1:])
    ratios = log_ratios(confidences[0][usable], confidences[1:][:, usable], out, a)
    by_rmia = estimated_auc(ratios, inside)
    # Loss alone: Φ(1.5 / sqrt(2 (9 + 0.25))), up to the shape of the mixture.
    assert by_loss.value == pytest.approx(norm.cdf(1.5 / np.sqrt(18.5)), abs=0.03)
    assert by_rmia.value > 0.85
    assert a in GRID and a >= 0.8  # here confidence rises little where it is low
    fixed = log_ratios(confidences[0][usable], confidences[1:][:, usable], out, OFFLINE_A)
    assert by_rmia.value > estimated_auc(fixed, inside).value


def test_two_halves_leave_nothing_to_choose_a_on() -> None:
    trained = np.array([[True] * 5 + [False] * 5, [False] * 5 + [True] * 5])
    assert chosen_a(np.zeros((2, 10)), trained) == OFFLINE_A


def test_what_epsilon_allows() -> None:
    assert most_allowed(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert most_allowed(0.01, 1.0, 1e-5) == pytest.approx(np.e * 0.01 + 1e-5)
    assert most_allowed(0.5, 2.0, 0.0) == pytest.approx(1 - np.exp(-2) * 0.5)
    assert most_allowed(1.0, 3.0, 1e-5) == 1.0
    rng = RNG(0)  # the Laplace mechanism is (1, 0) private, and meets the bound in its tail
    members, others = rng.laplace(1, 1, 200_000), rng.laplace(0, 1, 200_000)
    for rate in (0.01, 0.001):
        found = tpr_at(members, others, rate)
        assert found is not None
        bound = most_allowed(rate, 1.0, 0.0)
        assert found.tpr.low < bound and found.tpr.value == pytest.approx(bound, rel=0.12)


def test_reference_runs_share_classes_fairly_and_pairs_share_nothing() -> None:
    labels = RNG(0).choice(4, 203, p=[0.5, 0.3, 0.15, 0.05])
    chosen = drawn(labels, 60, 5, seed=3)
    assert chosen.sum(1).tolist() == [60] * 5
    assert not (chosen[0] & chosen[1]).any() and not (chosen[2] & chosen[3]).any()
    assert (~chosen).any(0).all()
    for run in chosen:
        counts = np.bincount(labels[run], minlength=4)
        assert (np.abs(counts - np.bincount(labels) * 60 / 203) <= 1).all()
    assert np.array_equal(drawn(labels, 60, 2, seed=3), chosen[:2])
    assert not np.array_equal(drawn(labels, 60, 2, seed=4), chosen[:2])


def paint(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Noise of 8 px in class folders, the class drawn at random: only memory can learn it."""
    for index in range(count):
        place = folder / CLASSES[index % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and run/: a linear probe that knows 40 noise images by heart."""
    folder, rng = tmp_path_factory.mktemp("membership"), RNG(0)
    for split, count in (("train", 40), ("val", 8), ("test", 160)):
        paint(folder / "data" / split, count, rng)
    fit(
        data=str(folder / "data"), out=folder / "run", method="linear", image_size=8,
        method_args={"penalty": 1e-4},
    )  # fmt: skip
    return folder


def settings(folder: Path, out: Path, **changes: object) -> MembershipSettings:
    given = {"references": 0, "beside": ()}
    return MembershipSettings(str(folder / "run"), out=str(out), **{**given, **changes})  # type: ignore[arg-type]


def test_a_run_that_knows_its_images_by_heart_is_caught(overfitted: Path) -> None:
    found = audit_membership(settings(overfitted, overfitted / "audit", references=4))
    assert (found.num_members, found.num_others, found.reference_size) == (40, 160, 40)
    by_loss, by_rmia = found.results
    assert found.strongest is by_rmia and by_rmia.attack == "rmia"
    for one in found.results:
        assert one.auc.low > 0.8 and one.at[0] is not None and one.at[0].tpr.low > 0.2
        assert one.at[0].fpr.value <= 0.01 and one.at[1] is None
    assert any("resolved with 160 others: it takes 1,000" in note for note in found.notes)
    assert [row.num_members for row in by_loss.per_class] == [2] * 20
    assert found.exposed[0].dominates > 0.95 and "train" in found.exposed[0].path
    assert found.exposed[0].confidence > 2 * (found.exposed[0].outside or 1)
    assert "times as many as by chance" in in_words(found)
    assert found.blind is not None and found.blind.low < 0.5 < found.blind.high


def test_sides_of_different_kinds_are_named(overfitted: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    for index in range(120):
        place = others / CLASSES[index % 20]
        place.mkdir(parents=True, exist_ok=True)
        # Its class shows in its grey, and runs that train on some of these know the others.
        pixels = np.full((8, 8, 3), 12 * (index % 20) + index // 20, np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    asked = settings(overfitted, tmp_path / "out", references=2, others=str(others))
    found = audit_membership(asked)
    assert found.blind is not None and found.blind.high < 0.5
    assert any("differ by more than membership" in note for note in found.notes)


def test_a_stopped_audit_goes_on_and_trains_nothing_twice(
    overfitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "out", []
    whole = reference_module.fit

    def stops(*given: object, **by_name: object) -> object:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(by_name["out"])
        return whole(*given, **by_name)

    monkeypatch.setattr(reference_module, "fit", stops)
    asked = settings(overfitted, out, references=2)
    with pytest.raises(KeyboardInterrupt):
        audit_membership(asked)
    monkeypatch.setattr(reference_module, "fit", whole)
    told: list[tuple[int, int]] = []
    found = audit_membership(asked, on_train=lambda done, total: told.append((done, total)))
    assert [path.name for path in trained] == ["run-0"]  # type: ignore[attr-defined]
    assert told == [(1, 2), (2, 2)]
    monkeypatch.setattr(reference_module, "fit", None)
    assert audit_membership(asked).as_dict() == found.as_dict()
    seeds = [RunFolder(out / "references" / f"run-{n}").read_summary() for n in (0, 1)]
    assert [summary.seed for summary in seeds if summary] == [1, 2]
    with pytest.raises(OutputError, match="holds an audit with another seed"):
        audit_membership(replace(asked, seed=1))
    shutil.copyfile(
        out / "references" / "run-1" / "images.npz", out / "references" / "run-0" / "images.npz"
    )
    with pytest.raises(OutputError, match="a run on other images"):
        audit_membership(asked)


def test_a_stepped_run_is_attacked_beside_others(overfitted: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    fit(
        data=str(overfitted / "data"), out=run, method="rlrr", epochs=1, image_size=8, lr=1e-3,
        augment="flip",
    )  # fmt: skip
    told: list[tuple[int, int]] = []
    found = audit_membership(
        MembershipSettings(str(run), references=2, beside=("ncm", "rlrr"), out=str(out)),
        on_train=lambda done, total: told.append((done, total)),
    )
    assert [(one.model, one.attack) for one in found.results] == [
        ("rlrr (run)", "loss"), ("rlrr (run)", "rmia"), ("ncm", "loss"), ("ncm", "rmia"),
    ]  # fmt: skip
    assert told == [(done, 5) for done in range(1, 6)]
    kept = RunFolder(out / "references" / "run-1").read_config()
    asked = [kept[name] for name in ("method", "lr", "epochs", "augment", "image_size", "seed")]
    assert asked == ["rlrr", 1e-3, 1, "flip", 8, 2]
    assert RunFolder(out / "ncm").read_config()["image_size"] == 8


def test_the_verb_writes_tables_page_and_figures(
    overfitted: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, data = overfitted / "audit", overfitted / "data"  # the first of the runs above serve again
    told = ["audit", "membership", str(overfitted / "run"), "--data", str(data / "train")]
    told += ["--others", str(data / "test"), "--references", "2", "--beside", "none"]
    assert exit_code(*told, "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "40 images that trained the run, 160 others; 2 reference runs of 40 images" in shown
    table = [line for line in shown.splitlines() if line.startswith(("model", "linear (run)"))]
    assert len(table) == 3 and max(map(len, table)) <= 80
    figures = json.loads((out / "membership.json").read_text())
    assert figures["results"][1]["attack"] == "rmia" and figures["rates"] == [0.01, 0.001]
    page = (out / "membership.html").read_text()
    assert page.count('class="curve"') == 2 * 2 + 2 and "logarithmic axes" in page
    assert "Class by class" in page and "train" in page


def test_a_private_run_is_held_to_its_guarantee(
    overfitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(overfitted / "run", run)
    summary = RunFolder(run).read_summary()
    assert summary is not None
    spent = PrivacySpent(1.0, 1e-5, 0.1, 10, 1.0, 1.0)
    RunFolder(run).write_summary(replace(summary, privacy=spent))
    told = ["audit", "membership", str(run), "--references", "0", "--beside", "none"]
    assert exit_code(*told, "--out", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "allows no attack a TPR above 2.7 % at 1 % FPR, 0.3 % at 0.1 % FPR" in shown
    assert "loss passes what ε and δ allow at 1 % FPR, beyond chance" in shown
    assert "allows at most" in (tmp_path / "out" / "membership.html").read_text()


def judgement(scores: np.ndarray, inside: np.ndarray) -> str:
    """What is said of scores."""
    one = judged("m", "loss", scores, inside, np.zeros(len(scores), np.int64), ("a",))
    found = MembershipFound("run", "m", 1, 1, 1, 0, 0, {}, None, (one,), None, (), (), ())
    return in_words(found).replace("\N{NO-BREAK SPACE}", " ")


def test_the_sentence_says_no_more_than_the_figures() -> None:
    inside = np.arange(400) < 200
    nothing = judgement(RNG(0).normal(0, 1, 400), inside)
    assert "are recognised, as many as chance may give. A member scores higher" in nothing
    ties = judgement(np.where(inside, 1.0, 0.0), inside)
    assert "the members are recognised. A member scores higher than another image in 100 %" in ties
    perfect = judgement(np.arange(400.0)[::-1], inside)
    assert "recognised, 100.0 times as many as by chance. A member" in perfect
    few = judgement(np.arange(40.0), np.arange(40) < 20)
    assert few.startswith("A member scores higher than another image in 0 % of all pairs")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data", "{data}/test"], "got 160 of 160 images that did not train the run"),
        (["--data", "{data}/val"], "got 8 of 8 images that did not train the run"),
        (["--others", "{data}/train"], "got 40 of 40 images that trained or validated the run"),
        (["--others", "{data}/val"], "got 8 of 8 images that trained or validated the run"),
        (["--others", "{data}/train", "--skip-misplaced"], "--others: got 0 images that did not"),
        (["--others", "demo:digits"], "expected classes the model was trained on"),
        (["--others", "nowhere"], "data: got 'nowhere', expected one of"),
        (["--references", "1"], "--references: got 1, expected 0"),
        (["--references", "-2"], "--references: got -2, expected 0"),
        (["--seed", "-1"], "--seed: got -1, expected a whole number"),
        (["--beside", "liner"], "method: got 'liner', expected a known method"),
        (["--out", "{data}"], "which exists, expected a new folder"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    text: str,
    overfitted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = [word.format(data=overfitted / "data") for word in options]
    assert exit_code("audit", "membership", str(overfitted / "run"), *told) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not (tmp_path / "membership").exists()


def test_misplaced_and_repeated_images_are_left_out_where_asked(
    overfitted: Path, tmp_path: Path
) -> None:
    data = tmp_path / "mixed"
    shutil.copytree(overfitted / "data" / "train", data / "train")
    shutil.copytree(overfitted / "data" / "val", data / "val")
    shutil.copyfile(data / "train" / "a" / "0.png", data / "train" / "a" / "again.png")
    asked = settings(overfitted, tmp_path / "out", data=str(data), skip_misplaced=True)
    found = audit_membership(asked)
    assert found.num_members == 40
    assert any("8 images of --data" in note for note in found.notes)
    assert "1 repeated images left out" in found.notes


def test_a_part_of_the_members_is_said_and_lost_validation_images_too(
    overfitted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(overfitted / "data" / "test", folder / "others")
    for name in CLASSES[:10]:
        shutil.copytree(overfitted / "data" / "train" / name, folder / "members" / name)
    run = tmp_path / "run"
    shutil.copytree(overfitted / "run", run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(overfitted / "data"), str(folder / "gone")))
    asked = MembershipSettings(
        str(run), str(folder / "members"), str(folder / "others"), 0, (), out=str(tmp_path / "out")
    )
    found = audit_membership(asked)
    assert found.num_members == 20 and len(found.results[0].per_class) == 20
    assert any("20 of the run's 40 training images" in note for note in found.notes)
    assert any("validation images are no longer in" in note for note in found.notes)


def test_a_model_that_ended_as_its_probe_is_named(overfitted: Path, tmp_path: Path) -> None:
    """Its row would be taken for that of the method."""
    run = Path(shutil.copytree(overfitted / "run", tmp_path / "run"))
    summary = RunFolder(run).read_summary()
    assert summary is not None
    RunFolder(run).write_summary(replace(summary, reported=Reported("auto", 0, 0.5)))
    asked = MembershipSettings(str(run), references=0, beside=(), out=str(tmp_path / "out"))
    found = audit_membership(asked)
    assert found.probes == ("linear (run)",)
    assert any(note.startswith("linear (run): validation kept nothing") for note in found.notes)


def test_what_is_no_run_with_its_images_is_refused(
    overfitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert exit_code("audit", "membership", str(run)) == 2
    shutil.copytree(overfitted / "run", run)
    (run / "summary.json").unlink()
    assert exit_code("audit", "membership", str(run)) == 2
    (run / "images.npz").unlink()
    assert exit_code("audit", "membership", str(run)) == 2
    lines = capsys.readouterr().err.splitlines()
    texts = ("expected an existing run folder", "which is not finished", "without images.npz")
    assert len(lines) == 3 and all(text in line for text, line in zip(texts, lines, strict=True))
