"""When an image may leave: the confidence each exit requires, with or without a certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vitune.errors import VituneError, nearest
from vitune.exits.bounds import check_share, images_needed, last_certified, upper_bound
from vitune.files import write_atomic

Definition = Literal["disagreement", "error-gap"]
DEFINITIONS: tuple[str, ...] = get_args(Definition)
FORMAT = 1
NEVER = 2.0
"""A threshold above any confidence."""

DOUBTS = tuple(float(x) for x in np.round(np.geomspace(1e-4, 0.9, 120), 8))
"""The fixed path: how much doubt (1 - confidence) an exit accepts, from almost none to almost any.

It is the same for every run and every data set, so it cannot depend on the calibration images.
"""


@dataclass(frozen=True)
class Certificate:
    """What is certified of the thresholds, and from which data.

    Args:
        definition: "disagreement": an image leaves early with a class other than the last exit's.
            "error-gap": it leaves early with a wrong class although the last exit is right, which
            is an upper bound on the increase of the error.
        risk: at most this share of images, with probability 1 - delta.
        num_images, num_errors: calibration images, and errors among them.
        needed: the fewest images that could have certified this risk.
    """

    definition: str
    risk: float
    delta: float
    num_images: int
    num_errors: int
    needed: int


@dataclass(frozen=True)
class Thresholds:
    """The rule: an image leaves at the first exit whose confidence reaches its threshold.

    Args:
        after: the exits, as the number of blocks before each; the last exit is not listed.
        values: one threshold per exit, NEVER if no image leaves there.
        fingerprint: of the run they belong to.
        certificate: None for thresholds chosen by cost, which have none.
        budget: the requested mean cost, as a fraction of the full cost.
        content_hash: of the calibration images.
    """

    after: tuple[int, ...]
    values: tuple[float, ...]
    fingerprint: str
    certificate: Certificate | None = None
    budget: float | None = None
    data: str = ""
    content_hash: str = ""
    expected: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Save as JSON."""
        write_atomic(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Thresholds:
        """The thresholds in a file.

        Raises:
            VituneError: the file is damaged.
        """
        try:
            values = json.loads(path.read_text())
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            given = values.pop("certificate")
            certificate = None if given is None else Certificate(**given)
            values |= {name: tuple(values[name]) for name in ("after", "values")}
            return cls(**values, certificate=certificate)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VituneError(
                f"{path}: got damaged thresholds ({error}), expected those that "
                "'vitune exits calibrate' wrote. Calibrate again."
            ) from None


@dataclass(frozen=True, eq=False)
class Recorded:
    """Every exit's answers on the same images, from one full pass.

    Shapes:
        logits: (e + 1, b, c), the last exit last.
        labels: (b,).
    """

    logits: Tensor
    labels: Tensor

    @property
    def confidence(self) -> Tensor:
        """The largest probability of every exit, (e + 1, b)."""
        return self.logits.double().softmax(-1).amax(-1)

    @property
    def predicted(self) -> Tensor:
        """Class indices, (e + 1, b)."""
        return self.logits.argmax(-1)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Recorded:
        """The images at `indices`."""
        return Recorded(self.logits[:, indices], self.labels[indices])


def leaving_exit(confidence: Tensor, values: Sequence[float]) -> Tensor:
    """The exit at which each image leaves.

    Shapes: confidence (e + 1, b) -> (b,) int64; e is the last exit.
    """
    wanted = torch.tensor([*values, -1.0], dtype=confidence.dtype).unsqueeze(1)  # (e + 1, 1)
    return (confidence >= wanted).long().argmax(0)  # the first that is true


def errors(recorded: Recorded, values: Sequence[float], definition: str) -> Tensor:
    """Which images are errors of the early exits by `definition`, (b,) bool."""
    return _errors(recorded.predicted, recorded.confidence, recorded.labels, values, definition)


def certify(
    recorded: Recorded, *, risk: float, delta: float, definition: str
) -> tuple[tuple[float, ...], Certificate]:
    """The boldest thresholds of the fixed path whose risk is certified to be at most `risk`.

    All exits require the same confidence 1 - d; d grows along DOUBTS and every step is tested in
    turn (`last_certified`). If not even the first step passes, no image leaves early, which has no
    risk.

    Raises:
        VituneError: too few images for the risk (the text says how many are needed), only one
            class, or a value out of range.
    """
    if definition not in DEFINITIONS:
        raise VituneError(
            f"--of: got {definition!r}, expected one of {DEFINITIONS}. "
            f"{nearest(definition, DEFINITIONS)}"
        )
    needed, num_images = images_needed(risk, delta), len(recorded)
    if num_images < needed:
        best = upper_bound(0, num_images, delta) if num_images else 1.0
        raise VituneError(
            f"--data: got {num_images} images, expected at least {needed} to certify a risk of "
            f"{risk:g} at delta {delta:g}. Add images, or ask for --risk {best:.3f} or more."
        )
    if len(recorded.labels.unique()) < 2:
        raise VituneError(
            "--data: got images of one class, expected the mix of classes that you will meet in "
            "use. A certificate holds for images drawn like these."
        )
    num_exits = len(recorded.logits) - 1
    counts = path_errors(recorded, definition).sum(1).tolist()
    step = last_certified(counts, num_images, risk=risk, delta=delta)
    values, num_errors = ((NEVER,) * num_exits, 0)
    if step is not None:
        values, num_errors = (1 - DOUBTS[step],) * num_exits, counts[step]
    return values, Certificate(definition, risk, delta, num_images, num_errors, needed)


def path_errors(recorded: Recorded, definition: str) -> Tensor:
    """Which images are errors at each step of the path, (steps, b) bool."""
    num_exits = len(recorded.logits) - 1
    predicted, confidence = recorded.predicted, recorded.confidence
    return torch.stack(
        [
            _errors(predicted, confidence, recorded.labels, (1 - doubt,) * num_exits, definition)
            for doubt in DOUBTS
        ]
    )


def for_budget(recorded: Recorded, costs: Sequence[float], budget: float) -> tuple[float, ...]:
    """The most cautious thresholds whose mean cost on these images is at most `budget`.

    Args:
        costs: of leaving at each exit, as fractions of the full cost; one more than there are
            exits.
        budget: as a fraction of the full cost.

    Raises:
        VituneError: the budget is not in (0, 1), or below the cost of the first exit.
    """
    check_share("--budget", budget)
    if budget < costs[0]:
        raise VituneError(
            f"--budget: got {budget!r}, expected at least {costs[0]:.3f}, the cost of leaving at "
            "the first exit. Add an earlier exit, or allow more."
        )
    confidence, price = recorded.confidence, torch.tensor(list(costs))
    num_exits = len(recorded.logits) - 1
    levels = confidence[:-1].flatten().unique()  # rising
    low, high = 0, len(levels) - 1  # levels[0] lets all images leave at the first exit
    while low < high:
        middle = (low + high + 1) // 2
        values = (float(levels[middle]),) * num_exits
        if price[leaving_exit(confidence, values)].mean() <= budget:
            low = middle
        else:
            high = middle - 1
    return (float(levels[low]),) * num_exits


def _errors(
    predicted: Tensor,
    confidence: Tensor,
    labels: Tensor,
    values: Sequence[float],
    definition: str,
) -> Tensor:
    early = predicted.gather(0, leaving_exit(confidence, values).unsqueeze(0)).squeeze(0)
    last = predicted[-1]
    if definition == "disagreement":
        return early != last
    return (early != labels) & (last == labels)
