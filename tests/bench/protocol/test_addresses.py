"""A file that changes behind the program's back gives other cells, and no result of a mixture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from study_parts import Invented, paint, replace_unseen

from vitune.backbones import identity, load_backbone, local_files
from vitune.backbones.bundled import WEIGHTS
from vitune.bench.study import running
from vitune.bench.study.addressing import ALWAYS, AS_IF_ABSENT, WITHOUT_EFFECT, deciding
from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.current import changed_since
from vitune.bench.study.execution import InProcess
from vitune.bench.study.plan import Study
from vitune.bench.study.protocol import Planner, choose, read_results, run_study
from vitune.bench.study.running import complete, run_cell
from vitune.bench.study.store import Store
from vitune.bench.study.workbench import Workbench
from vitune.bench.tables.study_table import make_table
from vitune.cli import run
from vitune.data.split import Split
from vitune.errors import VituneError
from vitune.training import TrainConfig
from vitune.training.fitting import fit

Make = Callable[..., Any]

MICRO = "vitune/vit_micro_patch4_32"


@pytest.fixture
def own_study(tiny_study: Make, photos: Make) -> Study:
    """A study on files of its own; two seeds, no grid."""
    root = photos(splits={"train": 4, "val": 2, "test": 4})
    task = {"name": "photos", "data": str(root)}
    settings = {"batch_size": 4}
    return tiny_study(tasks=[task], settings=settings, seeds=[0, 1])  # type: ignore[no-any-return]


def cells_of(study: Study, bench: Workbench | None = None) -> list[Cell]:
    planner = Planner(study, bench or Workbench())
    variant, task = study.variants[0], study.tasks[0]
    choice = choose(study, variant, task, [])
    assert choice is not None
    return planner.final_cells(variant, task, choice)


def addresses(study: Study) -> list[str]:
    return [cell.address for cell in cells_of(study)]


def test_every_field_of_a_run_is_in_the_address_or_said_to_be_without_effect() -> None:
    """A new setting belongs in AS_IF_ABSENT with the value that changes nothing."""
    known = {*ALWAYS, *AS_IF_ABSENT, *WITHOUT_EFFECT}
    assert known == set(TrainConfig.model_fields)
    assert len(known) == len(ALWAYS) + len(AS_IF_ABSENT) + len(WITHOUT_EFFECT)


def test_addresses_outlive_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, every user's finished cells are run again: raise REVISION on purpose only."""
    cell = Cell(
        stage="final",
        label="a",
        task="t",
        group=None,
        config=TrainConfig(
            data="d",
            method="linear",
            lr=0.01,
            weight_decay=0.0,
            drop_path=0.1,
            epochs=100,
            start="plain",
            select="last",
            augment="none",
        ),
        setting={},
        scored_on="test",
        split_hashes={"train": "1", "test": "2"},
        fingerprint="v1-0",
        identity="3",
    )
    assert cell.address == "7b0062e3e57982e47e265b4708347804"
    monkeypatch.setattr("vitune.bench.study.addressing.REVISION", 99)
    assert cell.address != "7b0062e3e57982e47e265b4708347804"


def test_a_field_that_is_new_changes_no_address() -> None:
    asked = TrainConfig(data="d", start="plain", select="last", augment="none")
    config = asked.model_dump(mode="json")
    assert deciding({**config, "ema": None}) == deciding(config)
    assert "ema" not in deciding(config)
    assert deciding({**config, "ema": 0.9})["ema"] == 0.9
    assert set(deciding(config)) == set(ALWAYS)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_pixels_replaced_at_equal_size_and_date(
    own_study: Study, tmp_path: Path, split: str
) -> None:
    before = addresses(own_study)
    outcome = run_study(own_study, tmp_path / "out", executor=Invented())
    file = Path(own_study.tasks[0].data) / split / "ant" / "1.bmp"
    replace_unseen(file, paint(tmp_path / "other.bmp", 99).read_bytes())
    assert not set(addresses(own_study)) & set(before)
    (note,) = changed_since(own_study, outcome.results)
    assert "photos: the images or labels" in note and "since 2 of 2 runs" in note
    executor = Invented()
    again = run_study(own_study, tmp_path / "out", executor=executor)
    assert executor.num_run == 2 and again.num_reused == 0
    shown = {result.address for result in read_results(tmp_path / "out")}
    assert shown == {result.address for result in again.results}
    assert not shown & set(before)
    assert changed_since(own_study, again.results) == []


def test_the_same_workbench_sees_what_changed(own_study: Study, tmp_path: Path) -> None:
    """A notebook keeps its process: what it decoded may be older than the files."""
    bench = Workbench()
    first = run_study(own_study, tmp_path / "out", executor=InProcess(bench))
    for seed, split in enumerate(("train", "test")):
        file = Path(own_study.tasks[0].data) / split / "bee" / "0.bmp"
        replace_unseen(file, paint(tmp_path / "other.bmp", seed).read_bytes())
        again = run_study(own_study, tmp_path / "out", executor=InProcess(bench))
        assert again.num_reused == 0 and not again.failures
        assert again.results[0].split_hashes[split] != first.results[0].split_hashes[split]


def test_a_label_that_moves_and_an_order_that_changes(own_study: Study) -> None:
    root = Path(own_study.tasks[0].data)
    before = addresses(own_study)
    (root / "test/ant/3.bmp").rename(root / "test/bee/9.bmp")
    moved = addresses(own_study)
    assert not set(moved) & set(before)
    (root / "test/bee/9.bmp").rename(root / "test/ant/3.bmp")
    assert addresses(own_study) == before
    (root / "train/ant/0.bmp").rename(root / "train/ant/9.bmp")  # now the last of its class
    assert not set(addresses(own_study)) & set(before)


def test_which_images_belong_together_counts_and_not_what_it_is_called(
    tiny_study: Make, own_study: Study, tmp_path: Path
) -> None:
    table = tmp_path / "photos.csv"
    root = Path(own_study.tasks[0].data)
    files = sorted(path for path in root.rglob("*.*") if path.is_file())

    def address(name: Callable[[int], str] | None) -> str:
        """Of the cell of a table whose images are in the groups that `name` gives their places."""
        lines = ["path,label,split" + ("" if name is None else ",group")]
        for place, path in enumerate(files):
            split, label = path.relative_to(root).parts[:2]
            lines.append(f"{path},{label},{split}" + ("" if name is None else f",{name(place)}"))
        table.write_text("\n".join(lines))
        task = {"name": "photos", "data": str(table)}
        study = tiny_study(tasks=[task], settings={"batch_size": 4}, seeds=[0])
        return addresses(study)[0]

    pairs, renamed = address(lambda at: f"p{at // 2}"), address(lambda at: f"x{-(at // 2)}")
    assert pairs == renamed
    assert len({pairs, address(None), address(lambda at: f"p{at // 4}")}) == 3


def test_a_folder_that_moves_as_a_whole_gives_the_same_cells(
    own_study: Study, tmp_path: Path
) -> None:
    before = addresses(own_study)
    shutil.copytree(own_study.tasks[0].data, tmp_path / "elsewhere")
    task = own_study.tasks[0].model_copy(update={"data": str(tmp_path / "elsewhere")})
    assert addresses(own_study.model_copy(update={"tasks": (task,)})) == before


def changed_weight(source: Path, target: Path, name: str) -> Path:
    tensors = {key: value.float() for key, value in load_file(source).items()}
    values = tensors[name].view(-1)
    values[0] = torch.nextafter(values[0], torch.tensor(9.0))  # the last bit of one number
    save_file(tensors, target)
    return target


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "blocks.0.mlp.fc1.weight", "head.bias"])
def test_every_weight_counts_bit_by_bit(own_study: Study, tmp_path: Path, name: str) -> None:
    bundled = WEIGHTS / "vit_micro_patch4_32.safetensors"
    file = tmp_path / "weights.safetensors"
    shutil.copy(bundled, file)
    study = own_study.model_copy(update={"checkpoint": str(file)})
    before = addresses(study)
    assert before == addresses(own_study)  # the same weights from another file
    changed_weight(bundled, file, name)
    assert not set(addresses(study)) & set(before)


def hf_folder(folder: Path) -> str:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=2,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    values = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("preprocessor_config.json", "image_mean", [0.4, 0.5, 0.5]),
        ("preprocessor_config.json", "resample", 3),
        ("config.json", "num_attention_heads", 4),
        ("config.json", "layer_norm_eps", 1e-5),
    ],
)
def test_files_of_a_transformers_folder(
    own_study: Study, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    name = hf_folder(tmp_path / "model")
    study = own_study.model_copy(update={"backbone": name})
    before = addresses(study)
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    assert addresses(study.model_copy(update={"backbone": f"hf:{tmp_path / 'moved'}"})) == before
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert not set(addresses(study)) & set(before)


def test_an_identity_is_the_same_wherever_it_is_taken(tmp_path: Path) -> None:
    name = hf_folder(tmp_path / "model")
    assert identity(load_backbone(name)) == identity(load_backbone(name))
    assert identity(load_backbone(MICRO)) != identity(load_backbone(MICRO, image_size=64))
    assert {path.name for path in local_files(name)} >= {"config.json", "model.safetensors"}
    assert {path.suffix for path in local_files(MICRO)} == {".json", ".safetensors"}
    assert local_files("vit_base_patch16_224.orig_in21k") == ()
    assert local_files("hf:google/vit-base-patch16-224") == ()
    file = tmp_path / "model" / "model.safetensors"
    assert local_files(f"vit_tiny_patch16_224@{file}") == (file,)
    assert local_files(MICRO, file)[1] == file


def test_images_that_change_while_a_study_runs_fail_the_cell(
    own_study: Study, tmp_path: Path
) -> None:
    (cell, _) = cells_of(own_study)
    root = Path(own_study.tasks[0].data)
    for split in ("train", "test"):
        file = root / split / "ant" / "0.bmp"
        whole = file.read_bytes()
        replace_unseen(file, paint(tmp_path / "other.bmp", 5).read_bytes())
        result, _ = complete(cell, Store(tmp_path / split), Workbench())
        assert result.status == "failed"
        assert f"got other files of {split} than" in str(result.error)
        file.write_bytes(whole)
    assert complete(cell, Store(tmp_path / "train"), Workbench())[0].status == "done"


def test_test_images_that_change_during_training_fail_the_cell(
    own_study: Study, tmp_path: Path
) -> None:
    (cell, _) = cells_of(own_study)
    file = Path(own_study.tasks[0].data) / "test" / "ant" / "0.bmp"

    def train(*args: Any, **kwargs: Any) -> Any:
        replace_unseen(file, paint(tmp_path / "other.bmp", 5).read_bytes())
        return fit(*args, **kwargs)

    result = run_cell(cell, Workbench(), train=train)
    assert result.status == "failed" and "other files of test" in str(result.error)


def test_weights_that_change_while_a_study_runs_fail_the_cell(
    own_study: Study, tmp_path: Path
) -> None:
    bundled = WEIGHTS / "vit_micro_patch4_32.safetensors"
    file = tmp_path / "weights.safetensors"
    shutil.copy(bundled, file)
    study = own_study.model_copy(update={"checkpoint": str(file)})
    (cell, _) = cells_of(study)

    def train(*args: Any, **kwargs: Any) -> Any:
        changed_weight(bundled, file, "cls_token")
        return fit(*args, **kwargs)

    bench = Workbench()
    for how in (train, fit):  # during the run; before it
        result = run_cell(cell, bench, train=how)
        assert result.status == "failed" and "got other weights" in str(result.error)
    shutil.copy(bundled, file)
    done = run_cell(cell, bench)
    assert done.status == "done" and set(done.weight_files) == {
        "vit_micro_patch4_32.json", "weights.safetensors",
    }  # fmt: skip
    changed_weight(bundled, file, "cls_token")
    (note,) = changed_since(study, [done])
    assert f"files of backbone {MICRO} have changed" in note


def test_the_table_says_what_has_changed_since(
    own_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(own_study, tmp_path / "out", executor=Invented())
    assert run(["bench", "table", str(tmp_path / "out")]) == 0
    assert "have changed" not in capsys.readouterr().out
    file = Path(own_study.tasks[0].data) / "test" / "ant" / "0.bmp"
    replace_unseen(file, paint(tmp_path / "other.bmp", 5).read_bytes())
    assert run(["bench", "table", str(tmp_path / "out")]) == 0
    assert "have changed since 2 of 2 runs" in " ".join(capsys.readouterr().out.split())
    assert run(["bench", "table", str(tmp_path / "out"), "--no-check"]) == 0
    assert "have changed" not in capsys.readouterr().out
    shutil.rmtree(own_study.tasks[0].data)  # not on this machine: nothing to compare with
    assert run(["bench", "table", str(tmp_path / "out")]) == 0
    assert "have changed" not in capsys.readouterr().out


def test_methods_on_different_images_are_not_compared(result: Make) -> None:
    other = {"train": "1", "test": "9"}
    both = [result("a"), result("b", split_hashes=other)]
    with pytest.raises(VituneError, match=r"two sets of test images of task 't' \(of 'a' and"):
        make_table(both)
    assert len(make_table(both, split_columns=True).rows) == 2


def test_other_versions_devices_and_precisions_are_said(result: Make) -> None:
    first = {"device": "cpu (2 threads)", "precision": "fp32",
             "versions": {"vitune": "0.1.0", "torch": "2.15"}}  # fmt: skip
    second = {"device": "NVIDIA H200", "precision": "bf16",
              "versions": {"vitune": "0.1.1", "torch": "2.15"}}  # fmt: skip
    alike = make_table([result("a", **first), result("b", **first)])
    assert not any("different" in note for note in alike.notes)
    threads = make_table([result("a", **first), result("b", **{**first, "device": "cpu (8 t)"})])
    assert not any("different" in note for note in threads.notes)
    mixed = make_table([result("a", **first), result("b", **second)])
    text = " ".join(mixed.notes)
    for part in ("different devices (cpu: 1 run, NVIDIA H200: 1 run)", "number formats (fp32: 1",
                 "versions of vitune (0.1.0: 1 run, 0.1.1: 1"):  # fmt: skip
        assert part in text
    assert "versions of torch" not in text


def test_a_solved_probe_beside_bf16_is_no_mixed_study(result: Make) -> None:
    """Solvers always compute in fp32; --rerun-changed could not change that."""
    notes = make_table([result("linear", precision="fp32"), result("b", precision="bf16")]).notes
    assert not any("number formats" in note for note in notes)


def test_rerun_changed_runs_what_other_versions_ran(
    tiny_study: Make, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(seeds=[0, 1])
    run_study(study, tmp_path, executor=InProcess(bench))
    assert run_study(study, tmp_path, executor=InProcess(bench), fresh=True).num_reused == 2
    there = running.versions_here()
    assert {"vitune", "torch", "timm", "peft"} <= set(there)
    monkeypatch.setattr(running, "versions_here", lambda: {**there, "vitune": "9.9"})
    assert run_study(study, tmp_path, executor=InProcess(bench)).num_reused == 2
    calls: list[str] = []

    def told(cell: Cell, *_: Any, **__: Any) -> CellResult:
        calls.append(cell.address)
        return replace(
            Store(tmp_path).read(cell.address) or running.blank_result(cell, "done"),
            versions=running.versions_here(),
        )

    monkeypatch.setattr(running, "run_cell", told)
    again = run_study(study, tmp_path, executor=InProcess(bench), fresh=True)
    assert len(calls) == 2 and again.num_reused == 0
    assert run_study(study, tmp_path, executor=InProcess(bench), fresh=True).num_reused == 2


def test_scores_are_of_the_images_that_were_hashed(own_study: Study) -> None:
    """The test split's hash, taken without opening an image, is that of the decoded split."""
    bench = Workbench()
    (cell, _) = cells_of(own_study, bench)
    opened: Split = bench.open_test(cell.config, bench.task(cell.config, 0).refit.classes)
    from vitune.bench.study.file_hashes import hash_of

    assert hash_of(opened) == cell.split_hashes["test"]
