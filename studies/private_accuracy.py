"""Accuracy and membership under differential privacy, for the tables of docs/privacy.md.

    python studies/private_accuracy.py "demo:digits?train=1000" --out digits.json

Accuracy is that of the test images, or of the validation images where there are none: neither
chooses anything here. Membership is the attack by loss on training against test images: how many
training images lie above the threshold that 1 % of the test images pass, and the AUC. Data without
test images have no figures for it.

A stopped study goes on where it was. Rows of an older file without membership are run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from vitune import fit
from vitune.data import load_labelled, open_source
from vitune.inference import evaluate, load_run
from vitune.privacy import MembershipSettings, audit_membership

METHODS = {"linear_sgd": 3e-2, "bitfit": 1e-2, "rlrr": 1e-2, "lora": 3e-3, "full": 1e-3}
"""Methods and the rate that each has at every ε: none was searched on these images."""
EPSILONS = (1.0, 3.0, 8.0, None)
COLUMNS = {
    "accuracy": "accuracy, %",
    "tpr": "training images recognised at 1 % FPR, %",
    "auc": "AUC of membership, %",
}

Row = dict[str, Any]


def measured(
    data: str, method: str, lr: float, epsilon: float | None, seed: int, epochs: int, batch: int
) -> Row:
    """Accuracy and membership of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = fit(
            data=data, method=method, lr=lr, epochs=epochs, seed=seed, batch_size=batch,
            dp_epsilon=epsilon, start="plain", choose_best=False, select="last", augment="none",
            weight_decay=0.0, out=run,
        ).summary  # fmt: skip
        row: Row = {"accuracy": found.reported.val_accuracy, "tpr": None, "auc": None}
        if "test" in open_source(data).splits:
            loaded = load_run(run, device="cpu")
            test, _ = load_labelled(
                data, loaded.card.preprocessing, classes=loaded.classes, split="test"
            )
            row["accuracy"] = evaluate(loaded, test)["top1"]
            asked = MembershipSettings(
                str(run), references=0, beside=(), out=str(Path(folder) / "audit")
            )
            attack = audit_membership(asked).strongest
            row["auc"] = attack.auc.value
            row["tpr"] = None if attack.at[0] is None else attack.at[0].tpr.value
    return row


def print_table(rows: list[Row], column: str) -> None:
    """Mean and standard deviation over seeds, methods down and ε across."""
    print(f"\n{COLUMNS[column]}\n")
    print("| method | ε = 1 | ε = 3 | ε = 8 | no privacy |\n|---|---|---|---|---|")
    for method in METHODS:
        cells = []
        for epsilon in EPSILONS:
            values = [
                100 * row[column]
                for row in rows
                if (row["method"], row["epsilon"]) == (method, epsilon)
                and row.get(column) is not None
            ]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
        print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", default="private-accuracy.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    out = Path(given.out)
    known: list[Row] = json.loads(out.read_text()) if out.is_file() else []
    rows = {(row["method"], row["epsilon"], row["seed"]): row for row in known}
    for seed in range(given.seeds):
        for method in given.methods.split(","):
            lr = METHODS[method]
            for epsilon in EPSILONS:
                key = (method, epsilon, seed)
                if "tpr" in rows.get(key, {}):
                    continue
                found = measured(given.data, method, lr, epsilon, seed, given.epochs, given.batch)
                rows[key] = {"method": method, "epsilon": epsilon, "seed": seed, **found}
                out.write_text(json.dumps(list(rows.values())))
                print(rows[key], flush=True)
    for column in COLUMNS:
        print_table(list(rows.values()), column)


if __name__ == "__main__":
    main()
