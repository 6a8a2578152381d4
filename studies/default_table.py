"""Untouched defaults against the solved probe, from the runs of default_rates.py.

    python studies/default_rates.py OUT --starts default --methods linear,rlrr,lora,ssf,hta,full
    python studies/default_table.py OUT

Prints test accuracy per task and method and the difference from the solved probe of the same seed
(with more than one seed ± its standard deviation), how many single runs are more than 0.3 points
below their probe, and the largest calibration error. Only tasks and seeds with a probe count.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PROBE = "linear"
MARGIN = 0.3


def is_untouched(run: dict[str, Any]) -> bool:
    """Whether a run of default_rates.py was given nothing but its length."""
    return not any(run.get(key) for key in ("lr", "head_lr", "start", "augment", "also"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    lines = (given.out / "runs.jsonl").read_text().splitlines()
    runs = [run for run in map(json.loads, lines) if run["epochs"] == given.epochs]
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        if is_untouched(run):
            found[run["task"], run["method"]][run["seed"]] = run
    tasks = list(dict.fromkeys(task for task, _ in found))
    methods = list(dict.fromkeys(name for _, name in found if name != PROBE))
    print(f"| task | seeds | solved probe | {' | '.join(methods)} |")
    print("|---|---:|" + "---:|" * (len(methods) + 1))
    gains: dict[str, list[float]] = defaultdict(list)
    singles: list[float] = []
    for task in tasks:
        probe = found[task, PROBE]
        cells = [f"{100 * mean(run['test']['accuracy'] for run in probe.values()):.1f}"]
        for method in methods:
            own = found[task, method]
            pairs = [(own[seed], probe[seed]) for seed in own if seed in probe]
            if not pairs:
                cells.append("–")
                continue
            differences = [100 * (a["test"]["accuracy"] - b["test"]["accuracy"]) for a, b in pairs]
            singles += differences
            gains[method].append(mean(differences))
            reached = 100 * mean(a["test"]["accuracy"] for a, _ in pairs)
            spread = f"\u00a0±\u00a0{stdev(differences):.1f}" if len(pairs) > 1 else ""
            cells.append(f"{reached:.1f} ({gains[method][-1]:+.1f}{spread})")
        print(f"| {task} | {len(probe)} | {' | '.join(cells)} |")
    means = [f"{mean(gains[m]):+.1f}" if gains[m] else "–" for m in methods]
    lowest = [f"{min(gains[m]):+.1f}" if gains[m] else "–" for m in methods]
    print(f"| mean difference | | | {' | '.join(means)} |")
    print(f"| lowest difference | | | {' | '.join(lowest)} |")
    below = sum(single < -MARGIN for single in singles)
    print(f"\nruns more than {MARGIN} below their probe: {below} of {len(singles)}")
    worst = max(
        (run["test"]["ece_tempered"], task, method)
        for (task, method), seeds in found.items()
        for run in seeds.values()
    )
    print(f"largest calibration error: {worst[0]:.3f} ({worst[2]} on {worst[1]})")


if __name__ == "__main__":
    main()
