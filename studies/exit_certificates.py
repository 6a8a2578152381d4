"""How often a certificate is wrong: many re-splits of one run's held-out predictions.

    python studies/exit_certificates.py record RUN --data demo:digits --out logits.npz
    python studies/exit_certificates.py check logits.npz --draws 1000

`record` keeps every exit's logits on images the run has not seen. `check` calibrates again and
again on a part of them and compares with the risk on the rest. "drawn" takes the calibration
images with replacement, so that all predictions are the population and its risk is known exactly:
the theorem's own setting. "halves" splits without replacement; there the other half's share of
errors is itself a noisy figure, and above the wanted risk more often than the risk is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vitune.data import load_labelled
from vitune.exits import DEFINITIONS, EarlyExit, ExitsFolder, Recorded
from vitune.exits import find_exits as exits_of
from vitune.exits.bounds import last_certified
from vitune.exits.thresholds import path_errors
from vitune.inference import load_run
from vitune.inference.adding_exits import record_exits

RISKS, DELTA = (0.02, 0.05, 0.1), 0.05


def record(run: str, data: str, out: Path) -> None:
    """Save logits (e + 1, b, c) as float16 and labels (b,)."""
    loaded = load_run(run, exits="full")
    split, _ = load_labelled(data, loaded.card.preprocessing, classes=loaded.classes)
    exits = exits_of(loaded.model, ExitsFolder(Path(run)), len(loaded.classes))
    found = record_exits(loaded, EarlyExit(loaded.model, exits), split)
    np.savez_compressed(
        out, logits=found.logits.half().numpy(), labels=found.labels.numpy().astype(np.int16)
    )


def read(path: Path) -> Recorded:
    """What `record` saved."""
    with np.load(path) as arrays:
        logits = torch.from_numpy(arrays["logits"]).float()
        return Recorded(logits, torch.from_numpy(arrays["labels"]).long())


def check(recorded: Recorded, draws: int) -> None:
    """A line per risk and definition."""
    print("| risk | definition | wrong, drawn | nobody leaves | mean risk | wrong, halves |")
    print("|---:|---|---:|---:|---:|---:|")
    for risk in RISKS:
        for definition in DEFINITIONS:
            drawn, empty, means = wrong_when_drawn(recorded, risk, definition, draws)
            halves = wrong_on_other_half(recorded, risk, definition, draws)
            print(
                f"| {risk:g} | {definition} | {drawn / draws:.3f} | {empty / draws:.3f} | "
                f"{means:.4f} | {halves / draws:.3f} |"
            )


def wrong_when_drawn(
    recorded: Recorded, risk: float, definition: str, draws: int, size: int | None = None
) -> tuple[int, int, float]:
    """Calibrations whose risk over all predictions is above `risk`; those where nobody leaves."""
    generator, steps = np.random.default_rng(0), path_errors(recorded, definition).numpy()
    true, empty = steps.mean(1), 0
    risks: list[float] = []
    for _ in range(draws):
        chosen = generator.integers(0, len(recorded), size or len(recorded) // 2)
        step = certified_step(steps[:, chosen], risk)
        empty += step is None
        risks.append(0.0 if step is None else true[step])
    return sum(found > risk for found in risks), empty, float(np.mean(risks))


def wrong_on_other_half(recorded: Recorded, risk: float, definition: str, draws: int) -> int:
    """Re-splits into halves where the other half's share of errors is above `risk`."""
    generator, wrong = np.random.default_rng(1), 0
    steps = path_errors(recorded, definition).numpy()
    for _ in range(draws):
        order = generator.permutation(len(recorded))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        step = certified_step(steps[:, first], risk)
        wrong += step is not None and steps[step, second].mean() > risk
    return wrong


def certified_step(steps: np.ndarray, risk: float) -> int | None:
    """What `certify` chooses: a step of the path, None where nobody leaves."""
    counts = steps.sum(1).tolist()
    return last_certified(counts, steps.shape[1], risk=risk, delta=DELTA)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("path", help="a run with exits, or what record saved")
    parser.add_argument("--data", default="demo:digits")
    parser.add_argument("--out", type=Path, default=Path("logits.npz"))
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    if given.action == "record":
        record(given.path, given.data, given.out)
    else:
        check(read(Path(given.path)), given.draws)


if __name__ == "__main__":
    main()
