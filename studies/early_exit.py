"""MET against exits on RLRR and on full fine-tuning: accuracy, cost, three data sets, three seeds.

    nice -n 15 python studies/early_exit.py run OUT --sign ../shared/data/sign-digits \
        --cifar ../shared/data/vtab-1k/cifar
    python studies/early_exit.py table OUT

`run` appends a line to OUT/cells.jsonl per data set, seed and system, and skips those that are
there. Every trunk is trained once; exits with and without the graph term are trained on its
features. Half of the held-out images choose the thresholds, the other half is scored. Times are
CPU seconds of this process, early exits against the full network in turns, in batches of 32.
MET's rate is the best of 3e-3, 1e-2 and 3e-2 on the validation images of `digits`, seed 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from vitune.data import Split, batches, load_labelled, load_splits, normalise
from vitune.exits import (
    EarlyExit,
    Exit,
    ExitRecipe,
    ExitsFolder,
    Recorded,
    certify,
    exit_gflops,
    exit_logits,
    features_of,
    find_exits,
    find_trunk,
    leaving_exit,
    norm_of,
    seconds_per_image,
    train_exits,
)
from vitune.exits.thresholds import DOUBTS
from vitune.inference.adding_exits import record_exits
from vitune.inference.load import LoadedRun, load_run
from vitune.preprocessing import Preprocessing
from vitune.training import TrainConfig, fit

AT, SEEDS = (2, 4), (0, 1, 2)
EPOCHS, BATCH, MOST_HELD_OUT, TIMED = 8, 32, 1200, 128
DROP, RISK, DELTA = 0.005, 0.05, 0.05
TRUNKS: dict[str, dict[str, Any]] = {
    "rlrr": {"method": "rlrr"},
    "full": {"method": "full"},
    "met": {"method": "met", "lr": 3e-2, "method_args": {"exits": AT, "graph": 0.1}},
    "met, no graph": {"method": "met", "lr": 3e-2, "method_args": {"exits": AT, "graph": 0.0}},
}


@dataclass(frozen=True)
class Task:
    """One data set: what is trained on, and how many held-out images are used."""

    name: str
    data: str
    val_fraction: float = 0.2


def run(out: Path, tasks: Sequence[Task], seeds: Sequence[int]) -> None:
    """All cells that are not in OUT/cells.jsonl yet."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "cells.jsonl"
    done = {cell_key(cell) for cell in read(file)}
    for seed in seeds:
        for task in tasks:
            for trunk in TRUNKS:
                if (task.name, seed, trunk) not in done:
                    for cell in cells(task, seed, trunk):
                        with file.open("a") as lines:
                            lines.write(json.dumps(cell) + "\n")
                    print(task.name, seed, trunk, flush=True)


def cells(task: Task, seed: int, trunk: str) -> list[dict[str, Any]]:
    """Train one trunk, give it exits where its method brings none, and score."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        settings = {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed, "precision": "fp32"}
        config = TrainConfig.make(
            {"data": task.data, "val_fraction": task.val_fraction, **settings, **TRUNKS[trunk]}
        )
        fit(config, out=path)
        loaded = load_run(path, exits="full", device="cpu")
        held_out = some_of(load_labelled(
            task.data, loaded.card.preprocessing, classes=loaded.classes, split="test"
        )[0], MOST_HELD_OUT)  # fmt: skip
        found = []
        for name, runner, recorded in systems(loaded, path, config, held_out, trunk):
            first, second = halves(len(held_out), seed)
            costs = exit_gflops(runner, torch.zeros(1, 3, *loaded.card.preprocessing.image_size))
            cell = {"task": task.name, "seed": seed, "trunk": trunk, "system": name}
            scored = score(recorded.subset(first), recorded.subset(second), costs)
            times = {
                f"{kind}_time": time_share(
                    runner, scored[f"{kind}_values"], held_out.subset(second[:TIMED].numpy()),
                    loaded.card.preprocessing,
                )
                for kind in ("drop", "proof")
            }  # fmt: skip
            found.append(cell | scored | times)
        return found


def time_share(
    runner: EarlyExit, values: Sequence[float], split: Split, prepared: Preprocessing
) -> float:
    """Time with early exits as a part of the full network's, on images that chose nothing."""
    inputs = [normalise(batch["images"], prepared) for batch in batches(split, BATCH)]
    leaving = EarlyExit(runner.model, runner.exits, values)
    subjects = [(runner.model, inputs), (leaving, inputs)]
    full, early = seconds_per_image(subjects, rounds=3, clock=time.process_time)
    return early / full


def systems(
    loaded: LoadedRun, path: Path, config: TrainConfig, held_out: Split, trunk: str
) -> Iterator[tuple[str, EarlyExit, Recorded]]:
    """The exits of a method's own, or those trained on the frozen trunk, graph term off and on."""
    own = find_exits(loaded.model, ExitsFolder(path), len(loaded.classes))
    if own:
        runner = EarlyExit(loaded.model, own)
        yield trunk, runner, record_exits(loaded, runner, held_out)
        return
    row, prepared = find_trunk(loaded.model), loaded.card.preprocessing
    splits = load_splits(
        config.data, prepared, seed=config.seed, val_fraction=config.val_fraction,
        include=("train", "val"),
    )  # fmt: skip
    assert splits.train is not None and splits.val is not None
    train, val, test = (
        features_of(loaded.model, row, AT, split, prepared)
        for split in (splits.train, splits.val, held_out)
    )
    norm = norm_of(loaded.model, row)
    for graph in (0.0, 0.1):
        recipe = ExitRecipe(graph=graph, seed=config.seed)
        heads = train_exits(loaded.model, row, train, val, recipe)
        places = [
            Exit(after, row.blocks[after - 1], heads.head(index, row, norm))
            for index, after in enumerate(AT)
        ]
        name = f"{trunk} + exits" + (", graph" if graph else "")
        logits = exit_logits(heads, norm, test)
        yield name, EarlyExit(loaded.model, places), Recorded(logits, test.labels.clone())


def score(chosen_on: Recorded, scored_on: Recorded, costs: Sequence[float]) -> dict[str, Any]:
    """Accuracy of each exit; cost at half a point below full; cost and risk under a certificate."""
    values = boldest(chosen_on)
    certified, proof = certify(chosen_on, risk=RISK, delta=DELTA, definition="disagreement")
    at_drop, at_proof = realised(scored_on, values, costs), realised(scored_on, certified, costs)
    every = (scored_on.predicted == scored_on.labels).double().mean(1).tolist()
    return {
        "drop_values": list(values), "proof_values": list(certified),
        "accuracy_by_exit": every, "num_scored": len(scored_on), "risk": proof.risk,
        **{f"drop_{name}": value for name, value in at_drop.items()},
        **{f"proof_{name}": value for name, value in at_proof.items()},
    }  # fmt: skip


def boldest(recorded: Recorded) -> tuple[float, ...]:
    """The boldest thresholds of the path with at most DROP less accuracy than the last exit."""
    num_exits = len(recorded.logits) - 1
    right, confidence = (recorded.predicted == recorded.labels), recorded.confidence
    full, values = right[-1].double().mean(), (2.0,) * num_exits
    for doubt in DOUBTS:
        tried = (1 - doubt,) * num_exits
        left = leaving_exit(confidence, tried)
        if right.gather(0, left.unsqueeze(0)).double().mean() >= full - DROP:
            values = tried
    return values


def realised(
    recorded: Recorded, values: Sequence[float], costs: Sequence[float]
) -> dict[str, float]:
    """Accuracy, its change against the last exit, disagreement and cost share on other images."""
    left = leaving_exit(recorded.confidence, values)
    predicted = recorded.predicted.gather(0, left.unsqueeze(0)).squeeze(0)
    accuracy = (predicted == recorded.labels).double().mean().item()
    full = (recorded.predicted[-1] == recorded.labels).double().mean().item()
    price = torch.tensor(list(costs), dtype=torch.float64) / costs[-1]
    return {
        "accuracy": accuracy, "change": accuracy - full, "cost": price[left].mean().item(),
        "disagreement": (predicted != recorded.predicted[-1]).double().mean().item(),
    }  # fmt: skip


def table(out: Path) -> None:
    """Means over seeds, and the graph term's effect with 95 % t intervals over all cells."""
    found = list(read(out / "cells.jsonl"))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in found:
        groups[cell["task"], cell["system"]].append(cell)
    print(
        "| data | system | seeds | full | exit 2 | exit 4 | cost at −0.5 | time | change | "
        "cost, 5 % | time |"
    )
    print("|---|---|" + "---:|" * 9)
    for (task, system), group in groups.items():
        by_exit = np.mean([cell["accuracy_by_exit"] for cell in group], axis=0)
        means = {key: np.mean([cell[key] for cell in group]) for key in
                 ("drop_cost", "drop_time", "drop_change", "proof_cost", "proof_time")}  # fmt: skip
        print(
            f"| {task} | {system} | {len(group)} | {100 * by_exit[-1]:.1f} | "
            f"{100 * by_exit[0]:.1f} | {100 * by_exit[1]:.1f} | {means['drop_cost']:.3f} | "
            f"{means['drop_time']:.3f} | {100 * means['drop_change']:+.2f} | "
            f"{means['proof_cost']:.3f} | {means['proof_time']:.3f} |"
        )
    pairs = {
        "graph on rlrr": ("rlrr + exits, graph", "rlrr + exits"),
        "graph on full": ("full + exits, graph", "full + exits"),
        "graph in met": ("met", "met, no graph"),
        "met against rlrr + exits": ("met, no graph", "rlrr + exits"),
        "met against full + exits": ("met, no graph", "full + exits"),
    }
    for name, (one, other) in pairs.items():
        for what, value in VALUES.items():
            print(f"{name}: {what} {interval(paired(found, one, other, value))}")


VALUES = {
    "exit 2, points": lambda cell: 100 * cell["accuracy_by_exit"][0],
    "exit 4, points": lambda cell: 100 * cell["accuracy_by_exit"][1],
    "full, points": lambda cell: 100 * cell["accuracy_by_exit"][-1],
    "cost at −0.5": lambda cell: cell["drop_cost"],
    "time at −0.5": lambda cell: cell["drop_time"],
}


def paired(found: list[dict[str, Any]], one: str, other: str, value: Any) -> list[float]:
    """Differences over the cells that both systems have."""
    by = {(c["task"], c["seed"], c["system"]): value(c) for c in found}
    return [by[t, s, one] - by[t, s, other] for t, s, name in by
            if name == one and (t, s, other) in by]  # fmt: skip


def interval(differences: list[float]) -> str:
    """mean and 95 % t interval."""
    if len(differences) < 2:
        return f"{len(differences)} pairs, no interval"
    mean, error = np.mean(differences), stats.sem(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * error
    low, high = mean - half, mean + half
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, {len(differences)} pairs)"


def halves(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random halves."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(number))
    return order[: number // 2], order[number // 2 :]


def some_of(split: Split, most: int) -> Split:
    """At most so many images, the same ones every time."""
    order = np.random.default_rng(0).permutation(len(split))[:most]
    return split.subset(np.sort(order))


def read(file: Path) -> list[dict[str, Any]]:
    """The cells so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def cell_key(cell: dict[str, Any]) -> tuple[str, int, str]:
    return cell["task"], cell["seed"], cell["trunk"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--sign", default="../shared/data/sign-digits")
    parser.add_argument("--cifar", default="../shared/data/vtab-1k/cifar")
    parser.add_argument("--tasks", nargs="*", help="only these; default: all three")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    given = parser.parse_args()
    tasks = (
        Task("digits", "demo:digits?train=400"),
        Task("sign-digits", given.sign, 0.5),
        Task("cifar", f"vtab:{given.cifar}"),
    )
    torch.set_num_threads(1)
    if given.action == "run":
        chosen = [task for task in tasks if given.tasks is None or task.name in given.tasks]
        run(given.out, chosen, given.seeds)
    else:
        table(given.out)


if __name__ == "__main__":
    main()
