"""Audits of membership: runs that leak, refusals, a stopped audit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vitune import fit
from vitune.cli import main
from vitune.errors import OutputError
from vitune.privacy import MembershipSettings, audit_membership, in_words
from vitune.privacy import reference_runs as reference_module
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


@pytest.mark.parametrize("given", ["column", "pattern"])
def test_groups_make_the_intervals_too_narrow_and_are_named(
    given: str, overfitted: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(overfitted / "run", tmp_path / "run"))
    asked = MembershipSettings(str(run), references=0, beside=(), out=str(tmp_path / "out"))
    if given == "pattern":
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "groups": "/[a-t]/"}))
    else:
        files = sorted((overfitted / "data" / "train").rglob("*.png"))
        rows = [f"{path},{path.parent.name},train,{path.parent.name}" for path in files]
        table = tmp_path / "members.csv"
        table.write_text("\n".join(["path,label,split,group", *rows]))
        asked = replace(asked, data=str(table))
    (note,) = (note for note in audit_membership(asked).notes if "groups" in note)
    others = {"column": 160, "pattern": 20}[given]
    assert note.startswith(f"members are of 20 groups, other images of {others}: those of one")
