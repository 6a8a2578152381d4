"""Exits learn from kept features; what they cost is counted and measured."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.errors import VituneError
from vitune.exits import (
    EarlyExit,
    Exit,
    ExitHeads,
    ExitRecipe,
    block_share,
    cut_off,
    exit_gflops,
    exit_logits,
    find_trunk,
    full_gflops,
    norm_of,
    num_parameters,
    seconds_per_image,
    train_exits,
)
from vitune.exits.training import Features

CLASSES = 4


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=CLASSES
    ).eval().requires_grad_(False)  # fmt: skip


def clusters(number: int, seed: int, noise: float = 0.3) -> Features:
    """Features of two exits around a centre per class; the later exit is less noisy."""
    centres = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    draws = torch.randn(2, number, 32, generator=generator)
    pooled = centres[labels] + torch.tensor([3.0, 1.0]).view(2, 1, 1) * noise * draws
    return Features(pooled, 8 * nn.functional.one_hot(labels, CLASSES).float(), labels)


def accuracy(heads: ExitHeads, model: nn.Module, features: Features) -> list[float]:
    logits = exit_logits(heads, norm_of(model, find_trunk(model)), features)
    return (logits.argmax(-1) == features.labels).double().mean(1).tolist()


@pytest.mark.parametrize("distil", [0.0, 0.5, 1.0])
def test_exits_learn_and_later_ones_better(model: nn.Module, distil: float) -> None:
    recipe = ExitRecipe(epochs=20, distil=distil, rank=4)
    heads = train_exits(model, find_trunk(model), clusters(400, 2), None, recipe)
    first, second, last = accuracy(heads, model, clusters(400, 3))
    assert 0.6 < first < second and second > 0.9 and last == 1.0
    again = train_exits(model, find_trunk(model), clusters(400, 2), None, recipe)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(),
                                                 strict=True))  # fmt: skip


def test_distillation_alone_follows_the_last_exit_not_the_labels(model: nn.Module) -> None:
    train, test = clusters(400, 2, 0.1), clusters(200, 3, 0.1)
    swapped = Features(train.pooled, train.logits.roll(1, dims=-1), train.labels)
    recipe = ExitRecipe(epochs=20, distil=1.0, rank=4)
    heads = train_exits(model, find_trunk(model), swapped, None, recipe)
    logits = exit_logits(heads, norm_of(model, find_trunk(model)), test)
    assert (logits[1].argmax(-1) == (test.labels + 1) % CLASSES).double().mean() > 0.9


def test_confidence_is_scaled_without_changing_an_answer(model: nn.Module) -> None:
    trunk, train, val = find_trunk(model), clusters(60, 2, 1.0), clusters(600, 3, 1.0)
    recipe = ExitRecipe(epochs=150, rank=4, distil=0.0, lr=1e-2)
    raw = train_exits(model, trunk, train, None, recipe)
    scaled = train_exits(model, trunk, train, val, recipe)
    norm = norm_of(model, trunk)
    before, after = exit_logits(raw, norm, val)[:-1], exit_logits(scaled, norm, val)[:-1]
    assert torch.equal(before.argmax(-1), after.argmax(-1))
    for index in range(2):
        losses = [nn.functional.cross_entropy(x[index], val.labels) for x in (before, after)]
        assert losses[1] < 0.9 * losses[0]  # trained to the end on few images, it was too sure


def test_the_graph_term_changes_the_features(model: nn.Module) -> None:
    trunk, train = find_trunk(model), clusters(200, 2)
    norm, spread = norm_of(model, trunk), []
    for graph in (0.0, 5.0):
        recipe = ExitRecipe(epochs=40, rank=8, graph=graph, lr=1e-2)
        heads = train_exits(model, trunk, train, None, recipe)
        with torch.no_grad():
            z = nn.functional.normalize(heads.features(train.pooled[0], 0, norm), dim=-1)
        same = train.labels[:, None] == train.labels
        spread.append(torch.cdist(z, z)[same].mean().item())
    assert spread[1] < 0.9 * spread[0]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"rank": 0}, r"rank: got 0, expected at least 1"),
        ({"epochs": 0}, r"epochs: got 0, expected at least 1"),
        ({"lr": 0}, r"lr: got 0, expected above 0"),
        ({"graph": -1}, r"graph: got -1, expected 0 or more"),
        ({"distil": 1.5}, r"distil: got 1.5, expected a share"),
    ],
)
def test_recipes_out_of_range(changed: dict[str, float], text: str) -> None:
    with pytest.raises(VituneError, match=text):
        ExitRecipe(**changed)  # type: ignore[arg-type]


def test_counts_are_the_formula(model: nn.Module) -> None:
    heads = ExitHeads(2, 32, CLASSES, rank=8)
    found = sum(value.numel() for value in heads.parameters())
    assert found == num_parameters(2, 32, CLASSES, 8) == 2 * 32 * 8 + 2 * (8 + 32 + 33 * CLASSES)


def test_operations_and_times(model: nn.Module) -> None:
    trunk = find_trunk(model)
    heads, norm = ExitHeads(2, 32, CLASSES, rank=8), norm_of(model, trunk)
    runner = EarlyExit(model, [
        Exit(after, trunk.blocks[after - 1], heads.head(index, trunk, norm))
        for index, after in enumerate((2, 4))
    ])  # fmt: skip
    image = torch.randn(1, 3, 32, 32)
    costs, full = exit_gflops(runner, image), full_gflops(model, image)
    head = (2 * 32 * 8 + 32 * CLASSES) / 1e9  # multiply-adds
    assert costs[-1] == pytest.approx(full + 2 * head)
    block = (costs[1] - costs[0] - head) / 2
    tokens = 17
    expected = (12 * 32 * 32 * tokens + 2 * tokens * tokens * 32) / 1e9
    assert block == pytest.approx(expected, rel=1e-6)
    assert block_share(12, (4, 7, 10), (0.4, 0.3, 0.2)) == pytest.approx(0.575)
    assert block_share(12, (4, 7, 10), (0, 0, 0)) == 1
    assert set(cut_off(runner, 1)(image.expand(3, -1, -1, -1)).left.tolist()) == {0}
    calls: list[str] = []

    def subject(name: str) -> tuple[object, list[Tensor]]:
        return (lambda x: calls.append(name)), [image, image]

    times = seconds_per_image([subject("a"), subject("b")], rounds=2)  # type: ignore[list-item]
    assert len(times) == 2 and calls == ["a", "b", "a", "a", "b", "b", "a", "a", "b", "b"]
