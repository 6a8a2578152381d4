"""Scores of a run with exits: accuracy, where images leave, cost compared with alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitune.data import Split, normalise
from vitune.exits import (
    EarlyExit,
    ExitsFolder,
    Recorded,
    cut_off,
    errors,
    exit_gflops,
    full_gflops,
    leaving_exit,
    seconds_per_image,
)
from vitune.exits.exit_cost import Subject
from vitune.inference.adding_exits import record_exits
from vitune.inference.load import LoadedRun
from vitune.inference.thumbnails import thumbnail

TIMED_SECONDS = 12.0
ROUNDS = 3
MOST_TIMED, FEWEST_TIMED, TIMED_BATCH = 1024, 32, 32
NUM_BINS = 10
NUM_EXAMPLES = 6


@dataclass(frozen=True, eq=False)
class Rival:
    """Another run on the same images, for example with a smaller backbone.

    Args:
        split: the images at that run's own input size.
    """

    name: str
    run: LoadedRun
    split: Split


def score_exits(run: LoadedRun, split: Split, rivals: Sequence[Rival] = ()) -> dict[str, Any]:
    """Accuracy, share and cost of every exit, and of the alternatives on the same images.

    The alternatives are the network truncated after each exit (its head answers for every image),
    the full network, and other runs. All are timed in turn, in batches of TIMED_BATCH, on images
    spread over the split.

    Args:
        run: a run with exits.
    """
    assert run.exits is not None
    runner = run.exits
    recorded = record_exits(run, runner, split)
    left = leaving_exit(recorded.confidence, runner.values)
    right = recorded.predicted == recorded.labels  # (e + 1, b)
    gflops = exit_gflops(runner, _inputs(run, split, [0])[0])
    names = [*(str(place.after) for place in runner.exits), "last"]
    shares = torch.bincount(left, minlength=len(names)).double() / len(left)
    chosen = right.gather(0, left.unsqueeze(0)).squeeze(0)
    rows = [
        {
            "name": name,
            "share": shares[index].item(),
            "accuracy_of_leaving": _mean(chosen[left == index]),
            "gflops": gflops[index],
        }
        for index, name in enumerate(names)
    ]
    thresholds = ExitsFolder(run.path).read_thresholds(runner.exits)
    return {
        "exits": rows,
        "systems": _systems(run, split, recorded, chosen, gflops, shares, rivals),
        "mean_gflops": float((shares * torch.tensor(gflops, dtype=torch.float64)).sum()),
        "disagreement": _mean(errors(recorded, runner.values, "disagreement")),
        "error_gap": _mean(errors(recorded, runner.values, "error-gap")),
        "thresholds": list(runner.values),
        "certificate": None
        if thresholds is None or thresholds.certificate is None
        else asdict(thresholds.certificate),
        "budget": None if thresholds is None else thresholds.budget,
        "is_calibrated": thresholds is not None,
        "on_calibration_images": thresholds is not None
        and thresholds.content_hash == split.content_hash,
        "by_confidence": _by_confidence(recorded.confidence[0], left, len(names)),
        "examples": _examples(recorded, left, split),
    }


def _systems(
    run: LoadedRun,
    split: Split,
    recorded: Recorded,
    chosen: Tensor,
    gflops: Sequence[float],
    shares: Tensor,
    rivals: Sequence[Rival],
) -> list[dict[str, Any]]:
    """The alternatives a user could run: accuracy, GFLOPs and measured time of each."""
    runner = run.exits
    assert runner is not None
    accuracies = (recorded.predicted == recorded.labels).double().mean(1).tolist()
    inputs = _timed_inputs(run, split, 3 + len(runner.exits))
    plain = run.model
    mean = float((shares * torch.tensor(gflops, dtype=torch.float64)).sum())
    one = inputs[0][:1]
    systems: list[tuple[str, str, float, float, Subject]] = [
        ("with exits", "exits", _mean(chosen), mean, (runner, inputs)),
        ("full", "full", accuracies[-1], full_gflops(plain, one), (plain, inputs)),
    ]
    for index, place in enumerate(runner.exits):
        alone = cut_off(runner, index)
        cost = exit_gflops(EarlyExit(plain, [place]), one)[0]
        name = f"cut off at {place.after}"
        systems.append((name, "cut", accuracies[index], cost, (alone, inputs)))
    for rival in rivals:
        images = _spread(rival.split, sum(map(len, inputs)))
        batches = _inputs(rival.run, rival.split, images)
        systems.append(
            (
                rival.name,
                "rival",
                _accuracy(rival),
                full_gflops(rival.run.model, batches[0][:1]),
                (rival.run.model, batches),
            )
        )
    seconds = seconds_per_image([subject for *_, subject in systems], rounds=ROUNDS)
    return [
        {
            "name": name,
            "kind": kind,
            "accuracy": accuracy,
            "gflops": cost,
            "ms_per_image": 1000 * time,
            "num_timed": sum(map(len, subject[1])),
        }
        for (name, kind, accuracy, cost, subject), time in zip(systems, seconds, strict=True)
    ]


def _timed_inputs(run: LoadedRun, split: Split, num_systems: int) -> list[Tensor]:
    """The number of images with which all rounds take about TIMED_SECONDS."""
    first = _inputs(run, split, _spread(split, TIMED_BATCH))
    (seconds,) = seconds_per_image([(run.model, first)], rounds=1)
    number = int(TIMED_SECONDS / (seconds * ROUNDS * num_systems))
    return _inputs(run, split, _spread(split, min(MOST_TIMED, max(FEWEST_TIMED, number))))


def _spread(split: Split, number: int) -> list[int]:
    """At most `number` positions, evenly spread over the split."""
    return np.unique(np.linspace(0, len(split) - 1, min(number, len(split))).astype(int)).tolist()


def _inputs(run: LoadedRun, split: Split, places: Sequence[int]) -> list[Tensor]:
    """Batches of network inputs."""
    images = torch.from_numpy(np.asarray(split.images[np.asarray(places)])).permute(0, 3, 1, 2)
    return [
        normalise(part, run.card.preprocessing, device=run.device)
        for part in images.split(TIMED_BATCH)
    ]


def _accuracy(rival: Rival) -> float:
    logits = torch.cat(list(rival.run.logits(rival.split)))
    return _mean(logits.argmax(-1) == torch.from_numpy(rival.split.labels))


def _mean(values: Tensor) -> float:
    """The mean; 0 if empty."""
    return values.double().mean().item() if len(values) else 0.0


def _by_confidence(confidence: Tensor, left: Tensor, num_exits: int) -> list[dict[str, Any]]:
    """Over bins of the first exit's confidence: share of all images, and of these per exit."""
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    rows = []
    for index in range(NUM_BINS):
        inside = left[bins == index]
        if len(inside):
            counts = torch.bincount(inside, minlength=num_exits).double()
            rows.append(
                {
                    "from": index / NUM_BINS,
                    "share": len(inside) / len(left),
                    "exits": (counts / len(inside)).tolist(),
                }
            )
    return rows


def _examples(recorded: Recorded, left: Tensor, split: Split) -> dict[str, list[dict[str, Any]]]:
    """The most confident images of the first exit in use, the least confident of the last."""
    found = {}
    ends = {"first": int(left.min()), "last": int(left.max())}
    for name, index in ends.items():
        places = (left == index).nonzero().flatten()
        order = recorded.confidence[index][places].argsort(descending=name == "first")
        found[name] = [
            {
                "path": split.paths[place],
                "label": split.classes[int(recorded.labels[place])],
                "predicted": split.classes[int(recorded.predicted[index, place])],
                "confidence": float(recorded.confidence[index, place]),
                "thumbnail": thumbnail(split, place),
            }
            for place in places[order][:NUM_EXAMPLES].tolist()
        ]
    return found
