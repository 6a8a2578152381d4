"""A chart of how much of a model was trained: a thousand squares, each 0.1 % of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitune.report.formatting import count, percent
from vitune.runs import RunSummary

ACROSS, DOWN = 50, 20
PITCH, SIDE = 12, 10
NUM_SQUARES = ACROSS * DOWN

ROLE_WORDS = {
    "patch_embed": "patch embedding",
    "norm1": "norm before attention",
    "norm2": "norm before the MLP",
    "final_norm": "last norm",
    "q": "attention query",
    "k": "attention key",
    "v": "attention value",
    "qkv": "attention query, key, value",
    "attn_out": "attention output",
    "fc1": "MLP, first layer",
    "fc2": "MLP, second layer",
    "reduction": "patch merging",
    "block": "whole block",
    "head": "classifier",
}


def role_words(role: str) -> str:
    """A role of the network in words, or its name if it has none."""
    return ROLE_WORDS.get(role, role.replace("_", " "))


@dataclass(frozen=True)
class Share:
    """One kind of parameter: how many, their share of the model, the SVG path of its squares."""

    kind: str
    name: str
    num_parameters: int
    share: float
    path: str


@dataclass(frozen=True)
class Part:
    """The trained parameters of one role; `bar` is their share of the largest role's."""

    role: str
    words: str
    num_modules: int | None
    num_parameters: int
    share_of_trained: float
    bar: float


@dataclass(frozen=True)
class ParameterPicture:
    """Frozen, trained and head parameters as squares."""

    shares: tuple[Share, ...]
    frozen_path: str
    description: str


def parameter_picture(summary: RunSummary) -> ParameterPicture | None:
    """The squares of a run; None if its counts are unknown."""
    total, inside = summary.num_total, summary.num_trainable_without_head
    if not total or inside is None:
        return None
    head = summary.num_head or 0
    frozen = max(0, total - inside - head)
    kinds = [("trained", "trained in the backbone", inside), ("head", "new classifier head", head)]
    shares, start = [], 0.0
    for kind, name, found in [*kinds, ("frozen", "frozen, as pre-trained", frozen)]:
        stop = min(float(NUM_SQUARES), start + NUM_SQUARES * found / total)
        path = _squares(start, stop) if kind != "frozen" else ""
        shares.append(Share(kind, name, found, found / total, path))
        start = stop
    told = "; ".join(f"{entry.name} {count(entry.num_parameters)} ({percent(entry.share, 2)})"
                     for entry in shares)  # fmt: skip
    return ParameterPicture(
        tuple(shares), _squares(0, NUM_SQUARES), f"Of {count(total)} parameters: {told}."
    )


def trained_parts(summary: RunSummary) -> list[Part]:
    """The roles that were trained with their shares, in the order of the summary."""
    parts = summary.trained_parts
    total = sum(part.num_parameters for part in parts) or 1
    largest = max((part.num_parameters for part in parts), default=1) or 1
    return [
        Part(
            role=part.role,
            words=ROLE_WORDS.get(part.role, ""),
            num_modules=part.num_modules,
            num_parameters=part.num_parameters,
            share_of_trained=part.num_parameters / total,
            bar=part.num_parameters / largest,
        )
        for part in parts
    ]


def _squares(start: float, stop: float) -> str:
    """The squares from `start` to `stop`, line by line; a partial square is narrower."""
    path = []
    for index in range(math.floor(start), math.ceil(stop)):
        low, high = max(start, index) - index, min(stop, index + 1) - index
        x = index % ACROSS * PITCH + SIDE * low
        width = SIDE * (high - low)
        y = index // ACROSS * PITCH
        path.append(f"M{x:.5g} {y}h{width:.3g}v{SIDE}h{-width:.3g}z")
    return "".join(path)
