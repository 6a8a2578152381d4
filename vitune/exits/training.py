"""Train exits on a frozen network: its features once, then small heads on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones import logits_of
from vitune.data import Split, batches, normalise, seeded_generator
from vitune.errors import VituneError
from vitune.exits.exit_heads import ExitHeads, norm_of
from vitune.exits.leaving import observed
from vitune.exits.points import Trunk
from vitune.objectives import graph_penalty
from vitune.preprocessing import Preprocessing

BATCH = 128
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExitRecipe:
    """How exits are trained.

    Args:
        rank: of the shared adapters.
        epochs: passes over the stored features.
        lr: AdamW's peak rate; it falls to 0 along a cosine.
        weight_decay: of the matrices.
        batch_size: images per step.
        distil: share of self-distillation in each exit's loss; the labels get the rest.
        temperature: T of the distillation.
        graph: λ of the graph term; 0 leaves it out.
        seed: of the initial values and the order.

    Raises:
        VituneError: a value out of range.
    """

    rank: int = 32
    epochs: int = 100
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    distil: float = 0.5
    temperature: float = 2.0
    graph: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise VituneError(f"{name}: got {getattr(self, name)!r}, expected at least 1.")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise VituneError(f"{name}: got {getattr(self, name)!r}, expected above 0.")
        for name in ("weight_decay", "graph"):
            if not getattr(self, name) >= 0:
                raise VituneError(f"{name}: got {getattr(self, name)!r}, expected 0 or more.")
        if not 0 <= self.distil <= 1:
            raise VituneError(f"distil: got {self.distil!r}, expected a share in [0, 1].")


@dataclass(frozen=True, eq=False)
class Features:
    """A frozen network's features of images, computed once.

    Shapes:
        pooled: (e, b, d), the input of each exit.
        logits: (b, c), of the last exit.
        labels: (b,).
    """

    pooled: Tensor
    logits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@torch.inference_mode()
def features_of(
    model: nn.Module,
    trunk: Trunk,
    at: tuple[int, ...],
    split: Split,
    preprocessing: Preprocessing,
    *,
    on_progress: Progress | None = None,
) -> Features:
    """One pass over `split`: the pooled tokens after each exit's block, and the logits."""
    device = next(model.parameters()).device
    pooled: list[list[Tensor]] = [[] for _ in at]
    logits: list[Tensor] = []
    blocks = [trunk.blocks[after - 1] for after in at]

    def see(index: int, tokens: Tensor) -> None:
        pooled[index].append(trunk.pooled(tokens).float().cpu())

    with observed(model, blocks, see):
        for batch in batches(split, BATCH):
            inputs = normalise(batch["images"], preprocessing, device=device)
            logits.append(logits_of(model(inputs)).float().cpu())
            if on_progress is not None:
                on_progress(sum(map(len, logits)), len(split))
    labels = torch.from_numpy(split.labels.copy())
    return Features(torch.stack([torch.cat(parts) for parts in pooled]), torch.cat(logits), labels)


def train_exits(
    model: nn.Module,
    trunk: Trunk,
    train: Features,
    val: Features | None,
    recipe: ExitRecipe,
    *,
    on_progress: Progress | None = None,
) -> ExitHeads:
    """Heads for the exits in `train`, their confidence calibrated on `val` if there is one.

    Loss: Σ_e (1 − a) CE(logits_e, y) + a T² KL(last ‖ logits_e) at temperature T + λ G_e. The
    network itself gets no gradient.
    """
    torch.manual_seed(recipe.seed)
    num_exits, num_classes = len(train.pooled), train.logits.shape[-1]
    heads = ExitHeads(num_exits, trunk.width, num_classes, recipe.rank)
    norm = _frozen_copy(norm_of(model, trunk))
    # Features come from inference mode and cannot carry gradients.
    pooled, teacher = train.pooled.clone(), train.logits.clone()
    matrices = [p for p in heads.parameters() if p.dim() > 2 or p.shape[0] != num_exits]
    vectors = [p for p in heads.parameters() if not any(p is m for m in matrices)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = recipe.epochs * -(-len(train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=seeded_generator(recipe.seed, epoch))
        for chosen in order.split(recipe.batch_size):
            labels = train.labels[chosen]
            loss = _loss(heads, norm, pooled[:, chosen], teacher[chosen], labels, recipe)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if on_progress is not None:
            on_progress(epoch + 1, recipe.epochs)
    heads.requires_grad_(False).eval()
    if val is not None and len(val):
        _scale_confidence(heads, norm, val)
    return heads


@torch.no_grad()
def exit_logits(heads: ExitHeads, norm: nn.Module, features: Features) -> Tensor:
    """Logits of every exit, the last one's at the end, (e + 1, b, c)."""
    norm = _frozen_copy(norm)
    early = [
        heads.classify(heads.features(features.pooled[index].clone(), index, norm), index)
        for index in range(heads.num_exits)
    ]
    return torch.stack([*early, features.logits.clone()])


def _loss(
    heads: ExitHeads,
    norm: nn.Module,
    pooled: Tensor,
    teacher: Tensor,
    labels: Tensor,
    recipe: ExitRecipe,
) -> Tensor:
    soft = F.log_softmax(teacher / recipe.temperature, -1)
    total = pooled.new_zeros(())
    for index in range(heads.num_exits):
        features = heads.features(pooled[index], index, norm)
        logits = heads.classify(features, index)
        likeness = F.kl_div(
            F.log_softmax(logits / recipe.temperature, -1),
            soft,
            reduction="batchmean",
            log_target=True,
        )
        total = total + (1 - recipe.distil) * F.cross_entropy(logits, labels)
        total = total + recipe.distil * recipe.temperature**2 * likeness
        if recipe.graph:
            total = total + recipe.graph * graph_penalty(features, labels)
    return total


@torch.no_grad()
def _scale_confidence(heads: ExitHeads, norm: nn.Module, val: Features) -> None:
    """Temperature scaling of each exit on images it was not trained on, folded into its head.

    It changes no exit's class, only its confidence, so that one threshold can serve all exits.
    """
    logits = exit_logits(heads, norm, val)[:-1]
    grid = torch.logspace(-1, 1.5, 101)
    for index in range(heads.num_exits):
        losses = [F.cross_entropy(logits[index] / scale, val.labels) for scale in grid]
        best = grid[int(torch.stack(losses).argmin())]
        heads.weight[index] /= best
        heads.bias[index] /= best


def _frozen_copy(norm: nn.Module) -> nn.Module:
    """The norm on the CPU, where the stored features are."""
    return copy.deepcopy(norm).cpu().float().requires_grad_(False)
