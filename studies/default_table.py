"""Untouched defaults against the solved probe, from the runs of default_rates.py.

    python studies/default_rates.py OUT --starts default --methods linear,rlrr,lora,ssf,hta,full
    python studies/default_table.py OUT

Prints test accuracy per task and method, the difference from the solved probe of the same seed,
and the largest calibration error. Only tasks and seeds with a probe count.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

PROBE = "linear"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    lines = (given.out / "runs.jsonl").read_text().splitlines()
    runs = [run for run in map(json.loads, lines) if run["epochs"] == given.epochs]
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        if run["lr"] is None and run["start"] is None:
            found[run["task"], run["method"]][run["seed"]] = run
    tasks = list(dict.fromkeys(task for task, _ in found))
    methods = list(dict.fromkeys(name for _, name in found if name != PROBE))
    print(f"| task | seeds | solved probe | {' | '.join(methods)} |")
    print("|---|---:|" + "---:|" * (len(methods) + 1))
    gains: dict[str, list[float]] = defaultdict(list)
    for task in tasks:
        probe = found[task, PROBE]
        cells = [f"{100 * mean(run['test']['accuracy'] for run in probe.values()):.1f}"]
        for method in methods:
            own = found[task, method]
            pairs = [(own[seed], probe[seed]) for seed in own if seed in probe]
            if not pairs:
                cells.append("–")
                continue
            gain = mean(100 * (a["test"]["accuracy"] - b["test"]["accuracy"]) for a, b in pairs)
            gains[method].append(gain)
            reached = 100 * mean(a["test"]["accuracy"] for a, _ in pairs)
            cells.append(f"{reached:.1f} ({gain:+.1f})")
        print(f"| {task} | {len(probe)} | {' | '.join(cells)} |")
    means = [f"{mean(gains[m]):+.1f}" if gains[m] else "–" for m in methods]
    lowest = [f"{min(gains[m]):+.1f}" if gains[m] else "–" for m in methods]
    print(f"| mean difference | | | {' | '.join(means)} |")
    print(f"| lowest difference | | | {' | '.join(lowest)} |")
    worst = max(
        (run["test"]["ece_tempered"], task, method)
        for (task, method), seeds in found.items()
        for run in seeds.values()
    )
    print(f"\nlargest calibration error: {worst[0]:.3f} ({worst[2]} on {worst[1]})")


if __name__ == "__main__":
    main()
