"""Compare a written file, in its own runtime, with the run in PyTorch, on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitune.data import Split, normalise
from vitune.errors import AdapterError, one_line
from vitune.export.standalone import Model
from vitune.export.target import Pixels
from vitune.inference import LoadedRun

BATCHES = (1, 2, 3, 8)
PER_BATCH_SIZE = 24
"""Images for every batch size; the largest batch size continues through all images."""
TIMED_BATCHES = (1, 8)
TIMED_SECONDS = 2.0
TOLERANCE = 1e-4
"""Float32: largest difference between two logits, relative to the largest logit."""
PROBABILITY_TOLERANCE = 1e-3
"""Float32: largest difference between two probabilities."""
MAX_ELSEWHERE = 0.02
"""Share of images that may leave at another exit: those whose confidence is at the threshold."""
MAX_LOSS = 0.02
"""8 bits: accuracy that may be lost."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """The agreement of two systems on the same images.

    Args:
        num_images: how many.
        difference: largest difference between two logits.
        relative: the same, relative to the largest logit.
        top1: share of images with the same class.
        ties: images with another class whose two best logits in PyTorch are closer than
            `TOLERANCE`.
        same_exit: share of images that leave at the same exit; None without exits. Only those enter
            the differences.
        probability: largest difference between two calibrated probabilities.
    """

    num_images: int
    difference: float
    relative: float
    top1: float
    ties: int = 0
    same_exit: float | None = None
    probability: float = 0.0


@dataclass(frozen=True)
class Latency:
    """Median wall-clock time per batch in ms, both runtimes taking turns."""

    batch: int
    pytorch_ms: float
    exported_ms: float


@dataclass(frozen=True)
class Verdict:
    """The result of verification; `failure` says what was wrong, or is empty.

    Args:
        by_batch: agreement at each of BATCHES, by its number.
        whole: over all images, at the largest batch.
        pytorch_accuracy, accuracy: top-1 accuracy on those images, of the run and of the file.
    """

    by_batch: dict[int, Agreement]
    whole: Agreement
    pytorch_accuracy: float
    accuracy: float
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "by_batch": {str(n): asdict(a) for n, a in self.by_batch.items()}}


@dataclass(frozen=True, eq=False)
class Expected:
    """The run's own answers in PyTorch.

    Args:
        probabilities: those of `vitune predict`.

    Shapes: logits, probabilities (b, c); left (b,), None if the network has no exits.
    """

    logits: Logits
    left: npt.NDArray[np.int64] | None
    probabilities: Logits


def pytorch_answers(run: LoadedRun, images: Pixels) -> Expected:
    """Logits of `images` (b, h, w, 3) as `vitune predict` computes them, a batch of 8 at a time."""
    parts = [pytorch_answer(run, batch) for batch in _chunks(images, BATCHES[-1])]
    exits = [part.left for part in parts if part.left is not None]
    return Expected(
        np.concatenate([part.logits for part in parts]),
        np.concatenate(exits) if exits else None,
        np.concatenate([part.probabilities for part in parts]),
    )


@torch.inference_mode()
def pytorch_answer(run: LoadedRun, images: Pixels) -> Expected:
    """As `pytorch_answers`, in one batch."""
    given = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    inputs = normalise(given, run.card.preprocessing, device=run.device)
    outcome = run.outcome(inputs)
    return Expected(
        outcome.logits.cpu().numpy(),
        None if run.exits is None else outcome.left.cpu().numpy(),
        outcome.tempered(run.card.temperature).softmax(-1).cpu().numpy(),
    )


def verified(folder: Path, expected: Expected, split: Split, *, int8: bool = False) -> Verdict:
    """The file in `folder`, run on the split's images at every batch size of BATCHES.

    It fails in float32 where a logit is off by more than TOLERANCE of the largest, a probability
    by more than PROBABILITY_TOLERANCE, a class differs that is no tie, or more than MAX_ELSEWHERE
    of the images, and more than one, leave at another exit; in 8 bits where it loses more than
    MAX_LOSS of accuracy and more than one image.

    Raises:
        AdapterError: the runtime refuses the file or a batch size.
    """
    by_batch = {}
    with _told("the file"):
        model = Model(folder, torch.get_num_threads())
    for size in BATCHES:
        num = len(split) if size == BATCHES[-1] else min(len(split), PER_BATCH_SIZE)
        found, left = _answers(model, split.images[:num], size)
        by_batch[size] = whole = compared(found, expected, left, model.probabilities(found, left))
    accuracy = float((found.argmax(-1) == split.labels).mean())
    before = float((expected.logits.argmax(-1) == split.labels).mean())
    failure = _too_lossy(before, accuracy, len(split)) if int8 else _too_far(by_batch)
    return Verdict(by_batch, whole, before, accuracy, failure)


def compared(
    found: Logits,
    expected: Expected,
    left: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.floating],
) -> Agreement:
    """Two sets of answers for the first b images.

    Shapes: found (b, c), logits; left (b,), exits at which images left; probabilities (b, c).
    """
    wanted = expected.logits[: len(found)]
    same = np.ones(len(found), bool)
    if expected.left is not None:
        same = left == expected.left[: len(found)]
    scale = float(np.abs(wanted).max())
    gap = np.abs(found - wanted)[same].max(initial=0.0)
    gap = float(gap) if np.isfinite(found).all() else float("inf")
    chances = np.abs(probabilities - expected.probabilities[: len(found)])[same]
    own, other = wanted.argmax(-1), found.argmax(-1)
    rows = np.arange(len(found))
    close = wanted[rows, own] - wanted[rows, other] <= TOLERANCE * scale
    return Agreement(
        num_images=len(found),
        difference=gap,
        relative=gap / max(scale, 1e-12),
        top1=float((own == other).mean()),
        ties=int(((own != other) & close).sum()),
        same_exit=None if expected.left is None else float(same.mean()),
        probability=float(chances.max(initial=0.0)) if np.isfinite(gap) else 1.0,
    )


def _answers(model: Model, images: Pixels, size: int) -> tuple[Logits, npt.NDArray[np.int64]]:
    logits, left = [], []
    for batch in _chunks(images, size):
        with _told(f"a batch of {len(batch)}"):
            logits.append(model.logits(np.ascontiguousarray(batch)))
        left.append(model.left)
    return np.concatenate(logits), np.concatenate(left)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Within the context, any error of the runtime becomes one line."""
    try:
        yield
    except Exception as error:  # each runtime has its own error classes
        raise AdapterError(
            f"export: got {what} that the runtime refuses ({one_line(error)[:300]}), expected one "
            "that it runs. Nothing was written to --out."
        ) from error


def _too_far(by_batch: dict[int, Agreement]) -> str:
    for size, found in by_batch.items():
        if not found.relative <= TOLERANCE:
            return (
                f"logits at batch {size} that differ by {found.relative:.1e} of the largest, "
                f"expected at most {TOLERANCE:.0e}"
            )
        if not found.probability <= PROBABILITY_TOLERANCE:
            return (
                f"probabilities at batch {size} that differ by {found.probability:.1e}, expected "
                f"at most {PROBABILITY_TOLERANCE:.0e}"
            )
        others = round((1 - found.top1) * found.num_images) - found.ties
        if others > 0:
            return f"{others} of {found.num_images} images at batch {size} of another class"
        elsewhere = round((1 - (found.same_exit or 0)) * found.num_images)
        if found.same_exit is not None and elsewhere > max(1, MAX_ELSEWHERE * found.num_images):
            return (
                f"{elsewhere} of {found.num_images} images at batch {size} that leave at another "
                "exit"
            )
    return ""


def _too_lossy(before: float, after: float, num_images: int) -> str:
    # Of few images a single one is more than MAX_LOSS.
    most = max(MAX_LOSS, 1 / num_images)
    if before - after <= most + 1e-9:
        return ""
    return (
        f"an accuracy of {100 * after:.1f} % instead of {100 * before:.1f} %, expected to lose "
        f"{100 * most:.2g} points at most"
    )


def latencies(run: LoadedRun, folder: Path, images: Pixels) -> list[Latency]:
    """Time per batch in PyTorch and in the file's runtime, with equal numbers of threads."""
    model, found = Model(folder, torch.get_num_threads()), []
    for size in TIMED_BATCHES:
        batch = np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))
        subjects: list[Callable[[], object]] = [
            lambda batch=batch: pytorch_answer(run, batch),  # type: ignore[misc]
            lambda batch=batch: model.logits(batch),  # type: ignore[misc]
        ]
        pytorch_ms, exported_ms = _taking_turns(subjects)
        found.append(Latency(size, pytorch_ms, exported_ms))
    return found


def _taking_turns(subjects: list[Callable[[], object]]) -> list[float]:
    """Median milliseconds of each; each is warmed up twice."""
    times: list[list[float]] = [[] for _ in subjects]
    for call in (*subjects, *subjects):
        call()
    until = time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < until or len(times[0]) < 3:
        for call, taken in zip(subjects, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(1000 * (time.perf_counter() - started))
    return [median(taken) for taken in times]


def _chunks(images: Pixels, size: int) -> list[Pixels]:
    return [images[at : at + size] for at in range(0, len(images), size)]
