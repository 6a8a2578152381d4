"""The speed bench: honest figures in a tiny setting, and ratios that must stay within bounds."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.adapters import inject
from vitune.bench.speed.measuring import SpeedPlan, bench_speed, read_result
from vitune.bench.speed.ratios import step_ratio
from vitune.bench.speed.references import PAIRS, references
from vitune.bench.speed.speed_table import (
    compare_with,
    format_table,
    reference_row,
    sections,
)
from vitune.bench.speed.step_memory import live_peak_bytes
from vitune.bench.speed.subject import Contestant, Subject
from vitune.bench.speed.textbook import TextbookLinear, TextbookScaleShift, textbook
from vitune.cli._speed import print_speed
from vitune.errors import BackboneError, VituneError
from vitune.methods import get_method
from vitune.training import PRESETS

BACKBONE = "vitune/vit_micro_patch4_32"
CPU = torch.device("cpu")
TEXTBOOK = "rlrr-textbook"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plan = SpeedPlan(
        backbone=BACKBONE,
        methods=("rlrr", "lora", "rlrr-textbook"),
        batches=(8, 16),
        precisions=("fp32",),
        device="cpu",
        rounds=3,
        memory=False,
    )
    out = tmp_path_factory.mktemp("speed") / "speed.json"
    return {**bench_speed(plan, out=out), "path": out}


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Peak live bytes of a step in this process, after one that creates the optimiser's state."""
    return {label: peak_of(label) for label in ("rlrr", "rlrr+plain", "lora+plain", TEXTBOOK)}


def peak_of(label: str) -> float:
    subject = Subject(Contestant.parse(label), BACKBONE, CPU)
    images, labels = subject.images(16)
    subject.step(images, labels, "fp32")
    return live_peak_bytes(lambda: subject.step(images, labels, "fp32"))


def test_ratios_stay_within_generous_bounds(
    result: dict[str, Any], peaks: dict[str, float]
) -> None:
    """The guard: a regression shows as a ratio, whatever the machine."""
    rows = {(row["method"], row["batch"]): row for row in result["rows"]}
    assert step_ratio(rows["rlrr", 16], rows["rlrr-textbook", 16]) < 1.8
    assert step_ratio(rows["rlrr", 16], rows["lora", 16]) < 2.2
    assert peaks["rlrr"] / peaks[TEXTBOOK] < 0.6
    assert peaks["rlrr"] / peaks["lora+plain"] < 0.85
    assert peaks["rlrr"] / peaks["rlrr+plain"] < 0.8
    assert rows["rlrr", 16]["adapter_bytes"] < 80_000


def test_every_figure_is_there(result: dict[str, Any]) -> None:
    assert len(result["rows"]) == 6
    for row in result["rows"]:
        assert len(row["step_ms"]) == len(row["forward_ms"]) == 3
        assert min(row["step_ms"]) > 0
        parts = row["forward_ms"][0] + row["backward_ms"][0] + row["optimiser_ms"][0]
        assert row["step_ms"][0] == pytest.approx(parts)
        merges = row["method"] != "rlrr-textbook"
        assert len(row["merged_ms"]) == len(row["unmerged_ms"]) == (3 if merges else 0)
    assert result["matmul_gflops"]["fp32"] > 0


def test_the_file_holds_the_result_and_the_next_run_sees_it(result: dict[str, Any]) -> None:
    stored = read_result(result["path"])
    assert stored["rows"] == json.loads(json.dumps(result["rows"]))
    assert result["previous"] is None
    plan = SpeedPlan(
        BACKBONE, ("bitfit",), (2,), ("fp32",), "cpu", rounds=1, memory=False, inference=False
    )
    assert bench_speed(plan, out=result["path"])["previous"]["rows"] == stored["rows"]


def test_the_table_has_a_line_a_row_and_the_ratios(result: dict[str, Any]) -> None:
    lines = format_table(result).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 6 + 2 * (2 + 1)
    assert "RLRR / textbook, batch 16, fp32:" in lines
    textbook_line = next(line for line in lines if line.startswith("| rlrr-textbook"))
    assert "| 1.00 |" in textbook_line
    assert any("step time grows with batch^" in line for line in lines)
    assert "GFLOP/s" in format_table(result)


def test_a_terminal_of_80_columns_shows_every_figure(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tables a batch and precision; a column that nothing fills is not drawn."""
    found = list(sections(result))
    assert [section.title for section in found] == ["batch 8, fp32"] * 2 + ["batch 16, fp32"] * 2
    times, sizes = found[:2]
    assert times.heads[:2] == ("method", "step ms") and "/ floor" in times.heads
    assert sizes.heads == ("method", "adapter KB", "merged / plain", "un-merged / plain")
    assert [row[0] for row in times.rows] == ["rlrr", "lora", "rlrr-textbook"]

    shown = Console(file=io.StringIO(), width=80, highlight=False)
    monkeypatch.setattr("vitune.cli._speed.console", shown)
    full = copy.deepcopy(result)
    for row in full["rows"]:
        row |= {"floor_ms": 12345.0, "peak_mib": 12345.0, "resident_mib": 12345.0}
        row["method"] = row["method"].replace("rlrr", "rlrr+token_share=0.25")
        row["step_ms"] = [12345.0] * 3
    print_speed(full)
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    for word in ("batch 16, fp32", "12345", "optim.", "/ floor", "resident MiB", "GFLOP/s"):
        assert word in text
    assert text.count("rlrr+token_share=0.25  ") == 2 * 2  # nothing is broken over lines
    assert max(map(len, text.splitlines())) <= 80


def test_what_got_slower_is_named(result: dict[str, Any]) -> None:
    assert compare_with(result, result) == []
    slower = copy.deepcopy(result)
    slower["rows"][0]["step_ms"] = [2 * ms for ms in slower["rows"][0]["step_ms"]]
    slower["rows"][1]["adapter_bytes"] *= 2
    lines = compare_with(result, slower)
    assert len(lines) == 2
    assert lines[0].startswith("rlrr batch 8 fp32: step time") and "(+100%)" in lines[0]
    assert "adapter size" in lines[1]
    assert compare_with(slower, result) == []


def test_a_machine_twice_as_slow_is_no_regression(result: dict[str, Any]) -> None:
    slower = copy.deepcopy(result)
    for row in slower["rows"]:
        row["step_ms"] = [2 * ms for ms in row["step_ms"]]
    assert compare_with(result, slower) == []


def test_the_reference_is_the_textbook_else_the_first(result: dict[str, Any]) -> None:
    rows = result["rows"]
    reference = reference_row(rows, rows[0])
    assert reference is not None and reference["method"] == "rlrr-textbook"
    others = [row for row in rows if row["method"] != "rlrr-textbook"]
    reference = reference_row(others, others[1])
    assert reference is not None and reference["method"] == "rlrr"


def tiny_vit(**options: Any) -> VisionTransformer:
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=3, **options
    )


def test_the_textbook_is_the_same_function_of_the_same_parameters() -> None:
    base = tiny_vit()
    published = textbook(copy.deepcopy(base))
    adapted = inject(base, get_method("rlrr").configure(base))
    copy_parameters(published, adapted)
    images = torch.randn(2, 3, 16, 16)
    found, expected = adapted(images), published(images)
    torch.testing.assert_close(found, expected)
    sizes = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (adapted, published)
    ]
    assert sizes[0] == sizes[1]


def copy_parameters(published: nn.Module, adapted: nn.Module) -> None:
    """Give vitune's layers the published model's values."""
    network = adapted.base_model.model

    def fused(linears: list[TextbookLinear], layer: Any) -> None:
        layer.scale_out["default"].data = torch.cat([linear.scale_out for linear in linears])
        layer.scale_in["default"].data = torch.stack([linear.scale_in for linear in linears])
        layer.shift["default"].data = torch.cat([linear.shift for linear in linears])

    def shifted(source: TextbookScaleShift, layer: Any) -> None:
        layer.scale["default"].data = source.scale.data
        layer.shift["default"].data = source.shift.data

    shifted(published.patch_embed, network.patch_embed.proj)
    shifted(published.norm, network.norm)
    for theirs, ours in zip(published.blocks, network.blocks, strict=True):
        shifted(theirs.norm1, ours.norm1)
        shifted(theirs.norm2, ours.norm2)
        fused([theirs.attn.q, theirs.attn.k, theirs.attn.v], ours.attn.qkv)
        fused([theirs.attn.proj], ours.attn.proj)
        fused([theirs.mlp.fc1], ours.mlp.fc1)
        fused([theirs.mlp.fc2], ours.mlp.fc2)


@pytest.mark.parametrize("model", [tiny_vit(qkv_bias=False), nn.Linear(2, 2)])
def test_the_textbook_refuses_other_backbones(model: nn.Module) -> None:
    with pytest.raises(BackboneError, match="expected a plain timm ViT with biases"):
        textbook(model)


@pytest.fixture(scope="module")
def against_four() -> dict[str, Any]:
    """RLRR and all four references at a tiny shape; memory taken in this process."""
    labels = dict.fromkeys(label for _, *pair in PAIRS for label in pair)
    plan = SpeedPlan(
        BACKBONE, tuple(labels), (2,), ("fp32",), "cpu", rounds=2, memory=False, inference=False
    )
    found = bench_speed(plan)
    for row in found["rows"]:
        row["peak_mib"] = peak_of(row["method"]) / 2**20
    return found


def test_four_references_name_what_each_side_gets(against_four: dict[str, Any]) -> None:
    found = {one.title: one for one in references(against_four["rows"], 2, "fp32")}
    assert list(found) == [
        "as published", "+ fused attention", "+ lean step", "+ every product exact"
    ]  # fmt: skip
    published, fused, lean, exact = found.values()
    assert published.their_means[:2] == ("plain step", "attention by products")
    assert fused.their_means[:2] == ("plain step", "fused attention")
    assert lean.their_means[:2] == exact.our_means[:2] == ("lean step", "fused attention")
    assert exact.ours == "rlrr+exact=true"
    assert exact.our_means[2] == exact.their_means[2] == "products all float32"
    rows = {row["method"]: row for row in against_four["rows"]}
    for one in found.values():
        assert one.step == step_ratio(rows[one.ours], rows[one.theirs])
        assert one.peak == rows[one.ours]["peak_mib"] / rows[one.theirs]["peak_mib"]
    assert published.peak is not None and fused.peak is not None and lean.peak is not None
    assert published.peak < fused.peak < lean.peak
    text = format_table(against_four)
    assert "RLRR / textbook, batch 2, fp32:" in text and f"| {lean.peak:.2f} |" in text
    assert "attention by products" in text


def test_a_terminal_of_80_columns_shows_the_references(
    against_four: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Console(file=io.StringIO(), width=80, highlight=False)
    monkeypatch.setattr("vitune.cli._speed.console", shown)
    print_speed(against_four)
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "+ every product exact" in text and "textbook plain step" in text
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_side_there_is_no_reference(result: dict[str, Any]) -> None:
    assert [one.title for one in references(result["rows"], 8, "fp32")] == ["as published"]
    assert next(references(result["rows"], 8, "fp32")).peak is None
    assert not list(references(result["rows"], 8, "bf16"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("label", [f"{TEXTBOOK}+fused", f"{TEXTBOOK}+fused+lean"])
def test_the_references_compute_what_the_textbook_does(label: str, precision: str) -> None:
    expected, found = (gradient_of(each, precision) for each in (TEXTBOOK, label))
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert (found - expected).norm() / expected.norm() < tolerance


def gradient_of(label: str, precision: str) -> Tensor:
    """The gradients of one step on two images, as one vector."""
    torch.manual_seed(0)
    subject = Subject(Contestant.parse(label), BACKBONE, CPU)
    if label.startswith(TEXTBOOK):
        assert bool(subject.tail) == ("lean" in label)
    images, labels = subject.images(2)
    subject.optimiser.step = subject.optimiser.zero_grad = lambda *a, **k: None
    subject.step(images, labels, precision)
    grads = [p.grad for p in subject.model.parameters() if p.requires_grad]
    assert all(grad is not None for grad in grads)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def test_a_label_says_how_a_method_is_run() -> None:
    contestant = Contestant.parse("lora+r=16+plain+checkpointing")
    assert contestant.method == "lora" and contestant.arguments == {"r": "16"}
    assert contestant.plain and contestant.checkpointing and not contestant.compiled
    assert Contestant.parse("lora").arguments == {"r": 8}
    assert Contestant.parse("hira").arguments == {"r": 1}
    fast = Contestant.parse("rlrr+fast")
    assert fast.arguments == {"token_share": 0.25} and str(fast.tokens) == PRESETS["fast"]["tokens"]
    assert str(fast.tokens) in fast.gets and "keep" not in Contestant.parse("rlrr").gets
    dropped = Contestant.parse("lora+tokens=drop:0.5")
    assert (dropped.arguments, str(dropped.tokens)) == ({"r": 8}, "drop:0.5")
    textbook_alone = Contestant.parse("rlrr-textbook")
    assert textbook_alone.plain and not textbook_alone.fused
    lean = Contestant.parse("rlrr-textbook+lean+fused")
    assert not lean.plain and lean.fused and lean.gets == ("lean step", "fused attention")
    assert Contestant.parse("lora+plain+checkpointing").gets[::2] == ("plain step", "checkpointing")
    assert Contestant.parse("lora+compile").gets[0] == "torch.compile"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("rlr", "got 'rlr', expected known methods. Did you mean rlrr"),
        ("rlrr+plane", "with 'plane', expected plain, checkpointing, compile, fast, fastest or"),
        ("lora+lean", "got 'lora\\+lean' with 'lean', expected plain, checkpointing, compile"),
        ("rlrr-textbook+fuse", "with 'fuse', expected plain, .*fast, fastest, fused, lean"),
    ],
)
def test_an_unknown_label_is_refused(label: str, words: str) -> None:
    with pytest.raises(VituneError, match=words):
        Contestant.parse(label)


@pytest.mark.parametrize(
    ("times", "asked", "measured", "told"),
    [
        (0.5, (), ["fp32", "bf16"], []),
        (60.0, (), ["fp32"], ["bf16 is left out: this processor emulates it"]),
        (60.0, ("bf16",), ["bf16"], ["60 times as long as in fp32"]),
    ],
)
def test_bf16_is_left_out_where_it_is_emulated_unless_named(
    times: float,
    asked: tuple[str, ...],
    measured: list[str],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = {torch.float32: 1.0, torch.bfloat16: times}
    monkeypatch.setattr("vitune.training.precision.slowdown", lambda dtype, _: slow[dtype])
    monkeypatch.setattr("vitune.bench.speed.measuring.RATE_SIZES", (64, 64, 64))
    plan = SpeedPlan(
        backbone=BACKBONE, methods=("bitfit",), batches=(2,), precisions=asked, device="cpu",
        rounds=1, memory=False, inference=False,
    )  # fmt: skip
    said: list[str] = []
    result = bench_speed(plan, say=said.append)
    assert [row["precision"] for row in result["rows"]] == measured
    spoken = [line for line in said if "processor" in line]
    assert len(spoken) == len(told)
    assert all(words in line for words, line in zip(told, spoken, strict=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"precisions": ("fp8",)}, "got 'fp8', expected some of fp32"),
        ({"rounds": 0}, "got rounds=0"),
        ({"device": "tpu"}, "got 'tpu', expected auto, cpu or cuda"),
    ],
)
def test_a_plan_out_of_range_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(VituneError, match=words):
        SpeedPlan(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(VituneError, match="expected a GPU that PyTorch can see"):
        SpeedPlan(device="cuda")


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "notes.json"
    out.write_text('{"format": 99}')
    plan = SpeedPlan(BACKBONE, ("bitfit",), (1,), ("fp32",), "cpu", rounds=1)
    with pytest.raises(VituneError, match="expected a result of 'vitune bench speed'"):
        bench_speed(plan, out=out)
    assert out.read_text() == '{"format": 99}'


def test_checkpointing_a_backbone_that_cannot_is_refused() -> None:
    with pytest.raises(VituneError, match="expected a backbone that can recompute"):
        Subject(Contestant.parse("bitfit+checkpointing"), "torchvision:vit_b_16", CPU, 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_and_the_lean_step_give_the_same_gradients(precision: str) -> None:
    labels = ("rlrr+plain", "rlrr", "rlrr+checkpointing")
    found = [gradient_of(label, precision) for label in labels]
    tolerance = 1e-4 if precision == "fp32" else 0.05
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() < tolerance
