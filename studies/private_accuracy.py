"""Accuracy under differential privacy, for the table of docs/privacy.md.

    python studies/private_accuracy.py demo:digits --out digits.json

Images that neither trained nor validated are scored where the source has a test split; else
validation, which chose nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from vitune import fit

METHODS = {"linear_sgd": 3e-2, "bitfit": 1e-2, "rlrr": 1e-2, "lora": 3e-3, "full": 1e-3}
"""Methods and the rate that each has at every ε: none was searched on these images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", default="private-accuracy.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    out = Path(given.out)
    rows = json.loads(out.read_text()) if out.is_file() else []
    done = {(row["method"], row["epsilon"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for method, lr in METHODS.items():
            for epsilon in (1.0, 3.0, 8.0, None):
                if (method, epsilon, seed) in done:
                    continue
                found = fit(
                    data=given.data, method=method, lr=lr, epochs=given.epochs, seed=seed,
                    batch_size=given.batch, dp_epsilon=epsilon, start="plain", choose_best=False,
                    select="last", augment="none", weight_decay=0.0,
                ).summary  # fmt: skip
                row = {"method": method, "epsilon": epsilon, "seed": seed}
                rows.append({**row, "accuracy": found.reported.val_accuracy})
                out.write_text(json.dumps(rows))
                print(rows[-1], flush=True)
    print("| method | ε = 1 | ε = 3 | ε = 8 | no privacy |\n|---|---|---|---|---|")
    for method in METHODS:
        cells = []
        for epsilon in (1.0, 3.0, 8.0, None):
            values = [
                100 * r["accuracy"]
                for r in rows
                if (r["method"], r["epsilon"]) == (method, epsilon)
            ]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
