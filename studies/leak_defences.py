"""What the defences of `vitune audit leak` stop, and what they cost, for docs/privacy.md.

    python studies/leak_defences.py tiny_imagenet_32/ "demo:digits?train=1000" --out defences.json

The first data are attacked: a folder of 32 px images with one subfolder per class, a batch of 8 on
a random ViT-B/16 that the server prepared. On the second data the bundled backbone is trained, the
gradient of every step being changed as the defence changes an update; accuracy is that of the test
images, which choose nothing. A stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from vitune import fit
from vitune.data import load_labelled
from vitune.inference import evaluate, load_run
from vitune.privacy import Defence, LeakSettings, audit_leak

METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "bitfit": ({}, 1e-2),
    "rlrr": ({}, 1e-2),
    "lora": ({}, 3e-3),
    "houlsby": ({"rank": 64}, 3e-3),
}
"""Methods with their arguments and the rate that they train at."""
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "5 local steps": {"local_steps": 5},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "largest 10 %": {"keep": 0.1},
    "largest 1 %": {"keep": 0.01},
    "clip 1, noise 0.0001": {"clip": 1.0, "noise": 1e-4},
    "clip 1, noise 0.001": {"clip": 1.0, "noise": 1e-3},
    "clip 1, noise 0.01": {"clip": 1.0, "noise": 1e-2},
}
BATCH = 8
VIT = {"backbone": "vit_base_patch16_224", "image_size": 32, "pretrained": False}

Row = dict[str, Any]


def leaked(data: str, method: str, asked: dict[str, Any], seed: int) -> Row:
    """What the prepared backbone and the prepared classifier read, for one batch."""
    options = dict(asked)
    steps = options.pop("local_steps", 1)
    settings = LeakSettings(
        data, method, METHODS[method][0], batches=(BATCH,), local_steps=(steps,),
        attacks=("malicious", "head"), seeds=(seed,), defence=Defence(**options), **VIT,
    )  # fmt: skip
    row: Row = {}
    for found in audit_leak(settings)[0]:
        assert found.found is not None
        row[f"{found.attack} patches"] = found.found.patches
        row[f"{found.attack} psnr"] = found.found.psnr
    return row


@contextmanager
def defended(defence: Defence) -> Iterator[None]:
    """Every optimiser step inside sees the gradient as a server would get it."""
    drawn = iter(range(1 << 62))

    def change(optimiser: Optimizer, *_: Any) -> None:
        own = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        sent = defence({str(n): p.grad for n, p in enumerate(own)}, seed=next(drawn))
        for number, parameter in enumerate(own):
            parameter.grad = sent[str(number)]

    handle = register_optimizer_step_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


def accuracy(data: str, method: str, defence: Defence, seed: int, epochs: int) -> float:
    """Test accuracy after training under a defence."""
    arguments, lr = METHODS[method]
    with tempfile.TemporaryDirectory() as folder, defended(defence):
        run = Path(folder) / "run"
        fit(
            data=data, method=method, method_args=arguments, lr=lr, epochs=epochs, seed=seed,
            start="plain", choose_best=False, select="last", augment="none", out=run,
        )  # fmt: skip
        loaded = load_run(run, device="cpu")
        test, _ = load_labelled(
            data, loaded.card.preprocessing, classes=loaded.classes, split="test"
        )
        return float(evaluate(loaded, test)["top1"])


def table(rows: list[Row], column: str) -> str:
    """Means over seeds in percent: defences down, methods across."""
    lines = [f"\n{column}, %\n", "| defence | " + " | ".join(METHODS) + " |"]
    lines.append("|---|" + "---:|" * len(METHODS))
    for name in DEFENCES:
        cells = []
        for method in METHODS:
            mine = [r for r in rows if (r["defence"], r["method"]) == (name, method)]
            values = [100 * r[column] for r in mine if r.get(column) is not None]
            cells.append(f"{statistics.mean(values):.1f}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacked")
    parser.add_argument("trained")
    parser.add_argument("--out", default="defences.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    out = Path(given.out)
    rows: list[Row] = json.loads(out.read_text()) if out.is_file() else []
    done = {(row["defence"], row["method"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for method in given.methods.split(","):
            for name, asked in DEFENCES.items():
                if (name, method, seed) in done:
                    continue
                row: Row = {"defence": name, "method": method, "seed": seed}
                row |= leaked(given.attacked, method, asked, seed)
                if "local_steps" not in asked:
                    row["accuracy"] = accuracy(
                        given.trained, method, Defence(**asked), seed, given.epochs
                    )
                rows.append(row)
                out.write_text(json.dumps(rows))
                print(row, flush=True)
    for column in ("malicious patches", "head patches", "accuracy"):
        print(table(rows, column))


if __name__ == "__main__":
    main()
