"""Runs with fewer tokens, and the presets of `--speed`: trained, saved, loaded, refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import save_file

from vitune.bench.study.cells import CellResult, Scores
from vitune.bench.tables.notes import notes_on_runs, speed_text
from vitune.cli import run
from vitune.data import load_splits
from vitune.errors import VituneError
from vitune.fewer_tokens import TokenPlan, few_patches_notice, lost_exits_notice
from vitune.inference import add_exits, load_run, merge_run, predict
from vitune.methods import get_method
from vitune.training import TrainConfig, Trained, fit
from vitune.training.speed_presets import PRESETS

DIGITS = "demo:digits?train=32"
QUICK: dict[str, Any] = {
    "data": DIGITS, "batch_size": 16, "epochs": 1, "lr": 5e-3, "start": "plain",
}  # fmt: skip
SMALL: dict[str, Any] = {**QUICK, "image_size": 16}
MERGED = "merge:0.5@1"


@pytest.fixture(scope="module")
def merged_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    out = tmp_path_factory.mktemp("runs") / "merged"
    return out, fit(TrainConfig.make({**QUICK, "tokens": MERGED}), out=out)


def logits(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(x)


def test_a_run_is_loaded_with_its_token_plan(
    merged_run: tuple[Path, Trained], tmp_path: Path
) -> None:
    out, trained = merged_run
    assert yaml.safe_load((out / "config.yaml").read_text())["tokens"] == MERGED
    assert json.loads((out / "adapter" / "vitune.json").read_text())["tokens"] == MERGED
    assert trained.summary.tokens == MERGED and trained.summary.speed == "custom"
    assert "only 64 patches" in str(trained.summary.notice)
    x = torch.randn(4, 3, 32, 32)
    expected = logits(trained.model, x)
    un_merged, folded = (load_run(out, merge=merge) for merge in (False, True))
    torch.testing.assert_close(logits(un_merged.model, x), expected)
    torch.testing.assert_close(logits(folded.model, x), expected, atol=1e-4, rtol=1e-4)
    merge_run(out, tmp_path / "whole")
    whole = load_run(tmp_path / "whole")
    torch.testing.assert_close(logits(whole.model, x), expected, atol=1e-4, rtol=1e-4)
    assert whole.card.tokens == MERGED
    for module in whole.model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert not torch.allclose(logits(whole.model, x), expected, atol=1e-2)


def test_exits_that_merged_tokens_will_make_useless_are_told_at_the_start() -> None:
    met, rlrr = (
        get_peft_model(
            timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=2),
            get_method(name).config_class(),
        )
        for name in ("met", "rlrr")
    )
    told = lost_exits_notice(met, TokenPlan.parse("merge:0.5"))
    assert told.startswith("tokens merge:0.5: the early exits of MET cannot be used")
    assert "(merge:0.5:train)" in told
    for plan in ("keep", "drop:0.5", "merge:0.5:train"):
        assert lost_exits_notice(met, TokenPlan.parse(plan)) == ""
    assert lost_exits_notice(rlrr, TokenPlan.parse("merge:0.5")) == ""


def test_few_patches_are_warned_of_and_many_are_not() -> None:
    small, large = (
        timm.create_model("vit_tiny_patch16_224", img_size=size, depth=1) for size in (128, 224)
    )
    plan = TokenPlan.parse("drop:0.5")
    assert few_patches_notice(small, plan).startswith("tokens drop:0.5: images have only 64")
    assert few_patches_notice(large, plan) == ""
    assert few_patches_notice(small, TokenPlan()) == ""


def test_images_are_predicted_with_merged_tokens_and_exits_refused(
    merged_run: tuple[Path, Trained], tmp_path: Path
) -> None:
    out, trained = merged_run
    loaded, images = load_run(out), load_splits(DIGITS, trained.backbone.preprocessing, seed=0).val
    assert images is not None
    told = list(predict(loaded, images))
    assert len(told) == len(images) and {row.classes[0] for row in told} <= set(loaded.classes)
    page = (out / "report.html").read_text()
    assert MERGED in page and "custom" in page
    with pytest.raises(VituneError, match=r"--tokens merge:0\.5@1, expected one that keeps every"):
        add_exits(out, [1], tmp_path / "exits")


def test_threads_may_share_a_run_with_merged_tokens(merged_run: tuple[Path, Trained]) -> None:
    loaded = load_run(merged_run[0])
    images = load_splits(DIGITS, merged_run[1].backbone.preprocessing, seed=0).val
    assert images is not None

    def answers(_: int = 0) -> torch.Tensor:
        return torch.cat(list(loaded.logits(images, batch_size=2)))

    expected = answers()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(answers, range(12)))


def test_a_run_that_keeps_its_tokens_says_nothing_new(tmp_path: Path) -> None:
    plain = fit(TrainConfig.make(SMALL), out=tmp_path / "plain")
    assert plain.summary.speed == "exact" and plain.summary.tokens == "keep"
    assert "tokens" not in json.loads((tmp_path / "plain" / "adapter" / "vitune.json").read_text())
    dropped = fit(TrainConfig.make({**SMALL, "tokens": "drop:0"}), out=tmp_path / "dropped")
    assert dropped.summary.tokens == "drop:0"
    kept, same = plain.model.state_dict(), dropped.model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in kept.items())
    loaded = load_run(tmp_path / "dropped")
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_a_preset_fills_in_what_it_stands_for() -> None:
    fast = TrainConfig.make({**QUICK, "speed": "fast"})
    assert {name: getattr(fast, name) for name in PRESETS["fast"]} == PRESETS["fast"]
    same = TrainConfig.make({**QUICK, "speed": "fast", "tokens": PRESETS["fast"]["tokens"]})
    assert same == fast
    exact = TrainConfig.make({**QUICK, "speed": "exact", "precision": "fp32", "lean": False})
    assert exact.tokens == "keep"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_fast_run_says_what_it_gave_up_and_can_be_done_again(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bf16 = precision == "bf16"
    monkeypatch.setattr("vitune.training.precision.cpu_multiplies_bf16", lambda: has_bf16)
    trained = fit(TrainConfig.make({**SMALL, "speed": "fast"}), out=tmp_path / "run")
    assert trained.summary.precision == precision
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["speed"] == "fast" and config["tokens"] == PRESETS["fast"]["tokens"]
    assert config["method_args"] == {"token_share": 0.25}
    assert config["resolved"]["method"]["token_share"] == 0.25
    assert trained.summary.speed == "fast"
    file = tmp_path / "run" / "config.yaml"
    assert TrainConfig.read(file).speed == "fast"
    assert TrainConfig.read(file, {"speed": "exact", "method_args": {}}).tokens == "keep"
    single = TrainConfig.read(file, {"tokens": "drop:0.5"})
    assert (single.speed, single.tokens) == (None, "drop:0.5")
    monkeypatch.setattr("vitune.training.precision.cpu_multiplies_bf16", lambda: not has_bf16)
    assert load_run(tmp_path / "run").card.tokens == PRESETS["fast"]["tokens"]
    longer = fit(out=tmp_path / "run", resume=True, epochs=2).summary
    assert (longer.epochs, longer.speed, longer.precision) == (2, "fast", precision)


def cell(label: str, speed: str | None) -> CellResult:
    return CellResult(
        address=label, stage="final", label=label, task="t", group=None, protocol="honest",
        config={}, setting={}, seed=0, scored_on="test", split_hashes={}, fingerprint="",
        status="done", scores=Scores("test", 10, 0.5, 0.1, 0.1), speed=speed,
    )  # fmt: skip


def test_tables_say_which_speed_their_runs_had() -> None:
    assert speed_text([cell("a", None), cell("b", "exact")]) == "exact"
    mixed = [cell("a", "exact"), cell("b", "fast"), cell("c", "fast")]
    assert speed_text(mixed) == "exact: a; fast: b, c"
    assert "Speed: exact: a; fast: b, c." in notes_on_runs(mixed, ())
    assert not any("Speed" in note for note in notes_on_runs(mixed[:1], ()))


TRADED = "token_share=0.5"
REFUSED = {
    "--speed exact --tokens drop:0.5": "--speed: got 'exact' with --tokens drop:0.5, expected keep",
    "--speed fast --tokens keep": "--speed: got 'fast' with --tokens keep",
    "--speed fast --no-lean": "--speed: got 'fast' with --lean False",
    "--speed fastest --precision fp32": "--speed: got 'fastest' with --precision fp32",
    f"--speed exact --method-arg {TRADED}": f"'exact' with --method-arg {TRADED}",
    f"--speed fast --method-arg {TRADED}": f"'fast' with --method-arg {TRADED}",
    "--speed quick": "'quick' is not one of 'exact', 'fast'",
    "--tokens drop:2": "--tokens: got 'drop:2', expected a share below 1",
    "--tokens merge:0.9": "--tokens: got 'merge:0.9', expected a share of at most 0.5",
    "--tokens drop:0.5 --backbone test_resnet@FILE": "--tokens: got 'drop:0.5' with",
    "--tokens merge:0.5 --method moppa": "needs every patch at its position",
}


@pytest.mark.parametrize("options", REFUSED)
def test_contradictions_are_one_line_and_exit_code_2(
    options: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = options
    if "FILE" in options:
        file = tmp_path / "weights.safetensors"
        save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
        options = options.replace("FILE", str(file))
    words = ["train", "--data", DIGITS, "--epochs", "1", *options.split()]
    assert run([*words, "--out", str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err.strip()
    assert REFUSED[asked] in told and "\n" not in told, told
    assert not (tmp_path / "run").exists()
