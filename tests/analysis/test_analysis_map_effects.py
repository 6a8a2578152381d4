"""The core UᵀΔWV and the table of left basis, spectrum and right basis, against numpy."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_matrices import composed, orthonormal
from analysis_models import new_vit, perturb_trainable
from peft import LoraConfig, get_peft_model
from torch import Tensor

from vitune.analysis import compare_weights, effect_cells, map_effects, spectrum, write_spectrum
from vitune.analysis.core import Core
from vitune.analysis.map_effects import FIGURES, along_training_plot
from vitune.errors import VituneError
from vitune.methods import get_method
from vitune.report.spectrum import map_table

VALUES = torch.linspace(5, 1, 12, dtype=torch.float64)


@pytest.fixture
def bases() -> tuple[Tensor, Tensor]:
    """Left and right bases of an 18 x 12 weight, the left one with six directions to spare."""
    return orthonormal(18, 18, seed=1), orthonormal(12, 12, seed=2)


def core_after(before: Tensor, after: Tensor) -> Core:
    core = compare_weights(before, after, top=(1, 8)).core
    assert core is not None
    assert core.diagonal + core.off_diagonal + core.outside == pytest.approx(1)
    return core


def test_a_change_of_singular_values_lies_on_the_diagonal(bases: tuple[Tensor, Tensor]) -> None:
    left, right = bases
    before = composed(left[:, :12], VALUES, right)
    core = core_after(before, composed(left[:, :12], 1.2 * VALUES, right))
    assert (core.diagonal, core.off_diagonal, core.outside) == pytest.approx((1, 0, 0), abs=1e-12)
    assert core.size == pytest.approx(0.2)
    assert core.leading == pytest.approx(float((VALUES[:8] ** 2).sum() / (VALUES**2).sum()))


def test_a_turn_within_the_span_lies_off_it_to_first_order(bases: tuple[Tensor, Tensor]) -> None:
    left, right = bases[0][:, :12], bases[1]
    turn = torch.eye(12, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(1e-3), -math.sin(1e-3)],
                                 [math.sin(1e-3), math.cos(1e-3)]])  # fmt: skip
    core = core_after(composed(left, VALUES, right), composed(left @ turn, VALUES, right))
    assert core.off_diagonal == pytest.approx(1, abs=1e-5)
    assert core.leading == pytest.approx(1)


def test_a_turn_out_of_the_span_lies_outside(bases: tuple[Tensor, Tensor]) -> None:
    left, right = bases
    turned = left[:, :12].clone()
    turned[:, 0] = math.cos(1e-3) * left[:, 0] + math.sin(1e-3) * left[:, 15]
    before = composed(left[:, :12], VALUES, right)
    core = core_after(before, composed(turned, VALUES, right))
    assert core.outside == pytest.approx(1, abs=1e-5)
    thin = composed(left[:, :3], VALUES[:3], right[:, :3])
    added = composed(left[:, 3:4], VALUES[:1], right[:, 3:4])
    assert core_after(thin, thin + added).outside == pytest.approx(1), "W has rank 3"


def test_nothing_changed_or_not_all_known_has_no_core(bases: tuple[Tensor, Tensor]) -> None:
    before = composed(bases[0][:, :12], VALUES, bases[1])
    assert compare_weights(before, before.clone()).core is None
    assert compare_weights(before, 2 * before, top=(1,), exact_limit=4).core is None


@pytest.mark.parametrize("method", ["ssf", "lora", "rlrr", "arc"])
def test_figures_of_a_method_are_those_of_numpy(method: str) -> None:
    """Every matrix of a real adapter, merged by the method itself, computed once more plainly."""
    base, plain = new_vit(), new_vit()
    model = get_peft_model(base, get_method(method).configure(base))
    perturb_trainable(model, 0.1)
    report = spectrum(model)
    merged = dict(model.merge_and_unload().named_parameters())
    old = dict(plain.named_parameters())
    checked = 0
    for weight in report.matrices:
        assert weight.change is not None and weight.change.core is not None
        before, after = (
            _part(side[weight.name].detach().double().numpy(), weight.part)
            for side in (old, merged)
        )
        u, values, vt = np.linalg.svd(before, full_matrices=False)
        delta = after - before
        core = u.T @ delta @ vt.T
        total = (delta**2).sum()
        found = weight.change.core
        tolerance = {"rel": 2e-3, "abs": 2e-4}  # the adapter merges in float32 here
        assert found.diagonal == pytest.approx((np.diag(core) ** 2).sum() / total, **tolerance)
        assert found.outside == pytest.approx(1 - (core**2).sum() / total, **tolerance)
        assert found.leading == pytest.approx((core[:8, :8] ** 2).sum() / total, **tolerance)
        assert found.size == pytest.approx(
            np.linalg.norm(core) / np.linalg.norm(values), **tolerance
        )
        new_values = np.linalg.svd(after, compute_uv=False)
        assert weight.change.spectrum_distortion == pytest.approx(
            np.linalg.norm(new_values - values) / np.linalg.norm(values), **tolerance
        )
        assert weight.change.basis_loss is not None
        k = weight.change.basis_loss.num_vectors
        for loss, columns in (
            (weight.change.basis_loss.left, after @ vt.T[:, :k]),
            (weight.change.basis_loss.right, after.T @ u[:, :k]),
        ):
            unit = columns / np.linalg.norm(columns, axis=0)
            gram = (unit.T @ unit) ** 2
            assert loss == pytest.approx(math.sqrt(1 - np.trace(gram) / gram.sum()), **tolerance)
        checked += 1
    assert checked >= 4


def _part(weight: np.ndarray, part: str | None) -> np.ndarray:
    """The part of a fused qkv, or a kernel as a matrix."""
    matrix = weight.reshape(len(weight), -1)
    return matrix if part is None else np.split(matrix, 3)["qkv".index(part)]


def test_each_side_is_told_apart() -> None:
    """Scaling outputs turns the left basis more, scaling inputs the right."""
    torch.manual_seed(0)
    before = torch.randn(40, 40, dtype=torch.float64)
    scale = 1 + 0.3 * torch.randn(40, dtype=torch.float64)
    by_out = compare_weights(before, scale[:, None] * before, energy=0.5).basis_loss
    by_in = compare_weights(before, before * scale, energy=0.5).basis_loss
    assert by_out is not None and by_in is not None
    assert by_out.left < by_out.right and by_in.right < by_in.left


def lora_report(size: float, seed: int = 0):
    model = get_peft_model(new_vit(), LoraConfig(target_modules=["fc1", "fc2"], r=2))
    torch.manual_seed(seed)
    perturb_trainable(model, size)
    return spectrum(model)


def test_runs_of_one_method_make_one_row_per_epoch(tmp_path: Path) -> None:
    reports = [lora_report(size, seed) for size in (0.02, 0.05) for seed in (0, 1)]
    measured = [
        ("lora", 0, reports[0].overall), ("lora", 0, reports[1].overall),
        ("lora", 5, reports[2].overall), ("lora", 5, reports[3].overall),
        ("other", None, reports[0].overall), ("lora", None, reports[2].overall),
    ]  # fmt: skip
    effects = map_effects(measured)
    assert [(e.method, e.epoch, e.num_runs) for e in effects] == [
        ("lora", 0, 2), ("lora", 5, 2), ("lora", None, 1), ("other", None, 1)
    ]  # fmt: skip
    first = [report.overall.left_loss for report in reports[:2]]
    assert effects[0].means["left_loss"] == pytest.approx(np.mean(first))  # type: ignore[arg-type]
    assert effects[0].stds["left_loss"] == pytest.approx(np.std(first, ddof=1))  # type: ignore[arg-type]
    assert effects[2].stds["left_loss"] is None
    heads, lines = effect_cells(effects)
    assert len(heads) == 1 + len(FIGURES) and lines[1][0] == "lora, epoch 5"
    assert " ± " in lines[0][1] and " ± " not in lines[2][1] and lines[0][3].endswith("°")
    write_spectrum(tmp_path, {"run": reports[0]}, effects=effects)
    record = json.loads((tmp_path / "spectrum.json").read_text())
    assert [row["epoch"] for row in record["maps"]] == [0, 5, None, None]
    rows = list(csv.DictReader((tmp_path / "maps.csv").read_text().splitlines()))
    assert float(rows[0]["left_loss"]) == pytest.approx(float(np.mean(first)), rel=1e-5)  # type: ignore[arg-type]
    assert (tmp_path / "along-training.svg").read_bytes().lstrip().startswith(b"<")
    table = map_table(record)
    assert table is not None and table.lines[0][:2] == ("lora", "epoch 0")
    assert table.lines[2][1] == "kept weights" and "left loss" in table.headings
    assert map_table({}) is None and map_table({"maps": [1]}) is None


def test_a_method_without_weights_has_empty_figures(tmp_path: Path) -> None:
    base = new_vit()
    idle = spectrum(get_peft_model(base, get_method("linear").configure(base)))
    effects = map_effects([("linear", None, idle.overall)])
    assert set(effects[0].means.values()) == {None}
    assert effect_cells(effects)[1][0][1:] == ("–",) * len(FIGURES)
    write_spectrum(tmp_path, {"run": idle}, effects=effects)
    assert not (tmp_path / "along-training.svg").exists()


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(VituneError, match="measured: got no run"):
        map_effects([])
    effects = map_effects([("lora", None, lora_report(0.1).overall)])
    with pytest.raises(VituneError, match="effects: got no method at two epochs"):
        along_training_plot(effects)
