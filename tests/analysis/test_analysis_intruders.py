"""Intruder dimensions: against a plain full computation, at any width and under any rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from analysis_matrices import composed, orthonormal
from peft import PeftModel
from torch import Tensor

import vitune.analysis.intruders as module
from vitune.analysis import AUTHORS, IntruderRule, compare_weights, spectrum
from vitune.errors import VituneError

WIDE = 1025
"""Above the width up to which SVDs are exact."""


def plain_count(before: Tensor, after: Tensor, cosine: float, side: str) -> int:
    """The paper's algorithm 1 in numpy: all old vectors against the ten leading new ones."""
    u_old, _, v_old = np.linalg.svd(before.numpy(), full_matrices=False)
    u_new, _, v_new = np.linalg.svd(after.numpy(), full_matrices=False)
    old, new = (u_old, u_new) if side == "left" else (v_old.T, v_new.T)
    return int(sum(np.abs(old.T @ new[:, j]).max() < cosine for j in range(10)))


def falling(rows: int, columns: int, seed: int, power: float = 0.5) -> Tensor:
    """Singular values j^-power, as weights of trained networks have them."""
    size = min(rows, columns)
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return composed(orthonormal(rows, size, seed), values, orthonormal(columns, size, seed + 1))


def strong_directions(rows: int, columns: int, num: int, size: float, seed: int) -> Tensor:
    left, right = orthonormal(rows, num, seed), orthonormal(columns, num, seed + 1)
    return composed(left, torch.full((num,), size, dtype=torch.float64), right)


@pytest.mark.parametrize("exact_limit", [1024, 8], ids=["exact", "randomised"])
@pytest.mark.parametrize("cosine", [0.3, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_plain_full_computation(
    exact_limit: int, cosine: float, seed: int
) -> None:
    before = falling(90, 60, seed, power=0.3 + 0.3 * seed)
    after = before + strong_directions(90, 60, seed, 0.8, 10 + seed)
    after += 0.004 * seed * torch.randn(90, 60, generator=torch.Generator().manual_seed(seed))
    rule = IntruderRule(cosine)
    found = compare_weights(before, after, exact_limit=exact_limit, intruders=rule).intruders
    assert found.left == plain_count(before, after, cosine, "left")
    assert found.right == plain_count(before, after, cosine, "right")
    assert found.on("both") == found.on("left") + found.on("right")


def test_widths_above_1024_are_counted_too() -> None:
    """A strong direction outside all of the old ones; on the right another that is an old one."""
    left, right = orthonormal(WIDE, 62, 1), orthonormal(WIDE, 61, 2)
    values = torch.arange(1, 61, dtype=torch.float64) ** -0.5
    before = composed(left[:, :60], values, right[:, :60])
    strong = torch.tensor([30.0, 25.0], dtype=torch.float64)
    change = compare_weights(before, before + composed(left[:, 60:], strong, right[:, [60, 0]]))
    assert not change.exact
    assert (change.intruders.left, change.intruders.right) == (2, 1)


def test_a_wide_weight_that_changed_little_needs_no_full_decomposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(matrix: Tensor) -> Any:
        raise AssertionError("a full SVD")

    monkeypatch.setattr(module, "decompose", refuse)
    before = falling(200, 180, 3)
    after = before * (1 + 0.01 * torch.randn(200, 1, dtype=torch.float64))
    found = compare_weights(before, after, exact_limit=8).intruders
    assert (found.left, found.right, found.num_checked, found.cosine) == (0, 0, 10, 0.6)
    with pytest.raises(AssertionError, match="a full SVD"):
        compare_weights(before, after + strong_directions(200, 180, 1, 2, 9), exact_limit=8)


def test_the_authors_rule_is_theirs() -> None:
    assert (AUTHORS.cosine, AUTHORS.side, AUTHORS.num_vectors) == (0.5, "left", 10)


def test_errors_of_vectors_bound_how_far_they_are_off() -> None:
    from vitune.analysis.decomposition import decompose, decompose_top

    matrix = falling(150, 120, 4, power=0.2)
    rough, true = decompose_top(matrix, 20), decompose(matrix)
    cosines = (rough.left * true.left[:, :20]).sum(0).abs().clamp(max=1)
    assert (cosines.acos() <= rough.errors + 1e-6).all()
    assert rough.errors[-1] == pytest.approx(np.pi / 2) and rough.errors[0] < 1e-3
    assert not true.errors.any()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"cosine": 0.0}, r"--intruder-cosine: got 0.0, expected a number in \(0, 1\]"),
        ({"cosine": 1.5}, "--intruder-cosine: got 1.5"),
        ({"side": "top"}, "--intruder-side: got 'top', expected left, right or both"),
        ({"num_vectors": 0}, "num_vectors: got 0, expected at least 1"),
    ],
)
def test_a_rule_out_of_range_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(VituneError, match=match):
        IntruderRule(**values)


def test_the_rule_decides_what_a_summary_adds_up(lora_vit: PeftModel) -> None:
    both = spectrum(lora_vit, intruders=IntruderRule(0.999))
    left = spectrum(lora_vit, intruders=IntruderRule(0.999, "left"))
    assert 0 < left.overall.num_intruders < both.overall.num_intruders  # type: ignore[operator]
    rule = left.to_dict()["intruder_rule"]
    assert rule == {"cosine": 0.999, "side": "left", "num_vectors": 10}
