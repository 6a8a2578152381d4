"""What is wrong with a task's images is found before training, and ends that task alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_parts import Invented, paint

from vitune.bench.study.cells import CellResult
from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Study, Task
from vitune.bench.study.protocol import Watcher, read_results, run_study
from vitune.bench.study.running import run_cell
from vitune.bench.study.scores import unpacked
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_table import make_table
from vitune.cli import run
from vitune.data import Decoding, open_source, readable, require_readable
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Any]


class Told(Watcher):
    """What was refused, and how many cells had finished by then."""

    def __init__(self) -> None:
        self.finished_cells = 0
        self.refusals: list[tuple[str, int]] = []

    def refused(self, task: Task, error: DataError) -> None:
        self.refusals.append((task.name, self.finished_cells))

    def finished(self, result: CellResult, reused: bool) -> None:
        self.finished_cells += 1


@pytest.fixture
def two_tasks(tiny_study: Make, photos: Make) -> Callable[..., Study]:
    """A study on a good task and, after it, one that the test damages."""

    def make(**changes: Any) -> Study:
        tasks = [{"name": name, "data": str(photos(name))} for name in ("good", "odd")]
        values = {"tasks": tasks, "settings": {"batch_size": 4}, "seeds": [0, 1], **changes}
        return tiny_study(**values)  # type: ignore[no-any-return]

    return make


def odd_root(study: Study) -> Path:
    return Path(study.tasks[1].data)


def share(study: Study, split: str = "test") -> None:
    """One training image is in another split, too."""
    shutil.copy(odd_root(study) / "train/ant/0.bmp", odd_root(study) / split / "ant/7.bmp")


def truncate(study: Study) -> None:
    file = odd_root(study) / "test/ant/0.bmp"
    file.write_bytes(file.read_bytes()[:200])


def lose_label(study: Study) -> None:
    paint(odd_root(study) / "test/wasp/0.bmp", 5)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (share, "got 1 image of test also in train"),
        (truncate, "expected an intact image file: every image of a test split is scored"),
        (lose_label, "got 'wasp' that training does not have"),
    ],
)
def test_a_task_that_cannot_be_used_ends_alone_and_before_training(
    two_tasks: Make, tmp_path: Path, damage: Callable[[Study], None], told: str
) -> None:
    study = two_tasks()
    damage(study)
    watcher = Told()
    outcome = run_study(study, tmp_path / "out", executor=Invented(), watcher=watcher)
    assert watcher.refusals == [("odd", 0)]
    assert [(r.task, r.status) for r in outcome.results] == [
        ("good", "done"), ("good", "done"), ("odd", "failed"), ("odd", "failed"),
    ]  # fmt: skip
    assert all(told in str(failure.error) for failure in outcome.failures)
    table = make_table(read_results(tmp_path / "out"))
    assert table.tasks == ("good", "odd") and table.rows[0].lost["odd"].num_failed == 2
    assert any(told in note for note in table.notes)
    shutil.rmtree(odd_root(study))
    shutil.copytree(study.tasks[0].data, odd_root(study))
    healed = run_study(study, tmp_path / "out", executor=Invented())
    assert not healed.failures and len(healed.results) == 4
    assert not make_table(read_results(tmp_path / "out")).rows[0].lost


def test_a_broken_training_image_is_found_when_its_task_begins(
    two_tasks: Make, tmp_path: Path
) -> None:
    study = two_tasks()
    (odd_root(study) / "train/ant/0.bmp").write_bytes(b"BM nothing")
    watcher = Told()
    outcome = run_study(study, tmp_path, executor=Invented(), watcher=watcher)
    assert watcher.refusals == [("odd", 2)] and len(outcome.failures) == 2


def test_when_no_task_can_be_used_the_study_is_refused(two_tasks: Make, tmp_path: Path) -> None:
    study = two_tasks()
    share(study)
    alone = study.model_copy(update={"tasks": study.tasks[1:]})
    with pytest.raises(DataError, match=r"got 1 image of test also in train"):
        run_study(alone, tmp_path, executor=Invented())


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_bad_images_are_skipped_in_training_and_never_in_the_test_split(
    two_tasks: Make, tmp_path: Path, damage: str
) -> None:
    study = two_tasks(settings={"batch_size": 4, "skip_bad_images": True}, seeds=[0])
    root = odd_root(study)
    (root / "train/ant/0.bmp").write_bytes(b"BM nothing")
    outcome = run_study(study, tmp_path / "trained", executor=InProcess())
    assert [r.sizes["train"] for r in outcome.results] == [12, 11]
    assert [r.scores.num_images for r in outcome.results if r.scores] == [8, 8]
    if damage == "corrupt":
        (root / "test/ant/0.bmp").write_bytes(b"BM nothing")
    else:
        table = tmp_path / "list.csv"
        lines = [f"{file},{file.parent.name},{file.parent.parent.name}\n"
                 for file in root.rglob("*.bmp")]  # fmt: skip
        table.write_text("path,label,split\n" + "".join(lines) + f"{root}/gone.bmp,ant,test\n")
        odd = study.tasks[1].model_copy(update={"data": str(table)})
        study = study.model_copy(update={"tasks": (study.tasks[0], odd)})
    watcher = Told()
    run_study(study, tmp_path / "tested", executor=Invented(), watcher=watcher)
    assert watcher.refusals == [("odd", 0)]


def test_allowed_overlap_is_scored_with_and_without(two_tasks: Make, tmp_path: Path) -> None:
    study = two_tasks(allow_overlap=True, seeds=[0])
    share(study)
    share(study, "val")
    outcome = run_study(study, tmp_path / "out", executor=InProcess())
    good, odd = outcome.results
    assert (good.status, odd.status) == ("done", "done") and good.unshared is None
    assert odd.scores is not None and odd.unshared is not None
    assert (odd.scores.num_images, odd.unshared.num_images) == (9, 8)
    bits = unpacked(odd.scores.correct, 9)
    alone = unpacked(odd.unshared.correct, 8)
    shared = [str(file) for file in sorted((odd_root(study) / "test/ant").iterdir())].index(
        str(odd_root(study) / "test/ant/7.bmp")
    )
    np.testing.assert_array_equal(np.delete(bits, shared), alone)
    assert odd.unshared.top1 == pytest.approx(alone.mean())
    (note,) = [n for n in make_table(outcome.results).notes if "training images too" in n]
    with_all, without = 100 * odd.scores.top1, 100 * odd.unshared.top1
    assert note.startswith("odd: 1 of 9 test images are among the training images too.")
    assert f"linear_sgd {with_all:.1f}, {without:.1f}" in note
    again = CellResult.from_json(odd.to_json())
    assert again == odd


def test_validation_images_that_training_holds(two_tasks: Make, tmp_path: Path) -> None:
    study = two_tasks(allow_overlap=True, seeds=[0], report_on="val")
    share(study, "val")
    (_, odd) = run_study(study, tmp_path, executor=InProcess()).results
    assert odd.scores is not None and odd.unshared is not None
    assert (odd.scores.num_images, odd.unshared.num_images) == (5, 4)


def test_a_test_split_that_training_holds_whole_is_no_test(two_tasks: Make, tmp_path: Path) -> None:
    study = two_tasks(allow_overlap=True, seeds=[0])
    shutil.rmtree(odd_root(study) / "test")
    shutil.copytree(odd_root(study) / "train", odd_root(study) / "test")
    (_, odd) = run_study(study, tmp_path, executor=InProcess()).results
    assert odd.status == "failed"
    assert "got only images that are also in training" in str(odd.error)


def test_the_command_line_goes_on_without_the_task_and_says_so(
    photos: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    roots = {name: photos(name) for name in ("good", "odd")}
    shutil.copy(roots["odd"] / "train/ant/0.bmp", roots["odd"] / "test/ant/7.bmp")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        yaml.safe_dump({"tasks": [{"name": n, "data": str(p)} for n, p in roots.items()]})
    )
    words = ["bench", "run", "--suite", str(suite), "--methods", "linear_sgd", "--defaults",
             "--epochs", "1", "--batch-size", "4", "--seeds", "1"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "refused")]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "left out: odd" in printed and "1 run failed" in printed and "1 failed" in printed
    assert run([*words, "--out", str(tmp_path / "allowed"), "--allow-overlap"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "odd: 1 of 9 test images are among the training images too" in printed


def test_a_test_split_is_decoded_once_to_check_it_and_remembered(
    photos: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_source(photos()).splits["test"]
    decoding = Decoding(Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))
    calls: list[str] = []
    decode = readable.decode_image

    def told(image: Any, *rest: Any) -> Any:
        calls.append(str(image))
        return decode(image, *rest)

    monkeypatch.setattr(readable, "decode_image", told)
    require_readable(records, decoding)
    assert sorted(calls) == sorted(record.name for record in records)
    require_readable(records, decoding)
    assert len(calls) == len(records)
    file = Path(records[0].name)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"'{file}': got .*--skip-bad-images does not skip it"):
        require_readable(records, decoding)
    file.unlink()
    with pytest.raises(DataError, match=r"got 'No such file or directory'"):
        require_readable(records, decoding)


def test_checking_opens_no_test_split(two_tasks: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check keeps no pixel: scores still come from one opening after training."""
    study = two_tasks(seeds=[0])
    bench = Workbench()
    opened: list[str] = []
    open_test = Workbench.open_test

    def told(self: Workbench, *arguments: Any) -> Any:
        opened.append("test")
        return open_test(self, *arguments)

    monkeypatch.setattr(Workbench, "open_test", told)
    from vitune.bench.study.protocol import Planner, choose

    planner = Planner(study, bench)
    planner.check(study.tasks[0])
    choice = choose(study, study.variants[0], study.tasks[0], [])
    assert choice is not None
    (cell,) = planner.final_cells(study.variants[0], study.tasks[0], choice)
    assert opened == []
    assert run_cell(cell, bench).status == "done" and opened == ["test"]
