"""How training scales: with tokens, over processes, from disk, and end to end.

    python studies/scale.py --out scale.json [--only tokens,input,stream,processes,run]

Run it on a machine with nothing else to do. Figures are ratios and exponents; docs/performance.md
says what they were where. `vitune bench speed --batch 8,32` tells of batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from vitune.bench.speed.speed_table import exponent
from vitune.bench.speed.subject import Contestant, Subject
from vitune.data.disk_array import lookup, new_array, store_index
from vitune.data.loader import EpochSampler, batches, normalise
from vitune.data.split import Split
from vitune.preprocessing import Preprocessing

CPU = torch.device("cpu")
BACKBONE, TINY = "vit_base_patch16_224", "vit_tiny_patch16_224"
CIFAR = "vtab:../shared/data/vtab-1k/cifar"
LAUNCH = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "vitune",
)  # fmt: skip


def step_seconds(subject: Subject, batch: int, precision: str = "bf16", rounds: int = 3) -> float:
    """Median seconds of a training step, after one of warm-up."""
    images, labels = subject.images(batch)
    times = [subject.step(images, labels, precision).step_ms / 1000 for _ in range(rounds + 1)]
    return median(times[1:])


def tokens() -> dict[str, Any]:
    """Step time of RLRR on ViT-B/16 over image sizes, batch 4."""
    found = {}
    for size in (112, 160, 224, 320, 448):
        subject = Subject(Contestant.parse("rlrr"), BACKBONE, CPU, size)
        found[(size // 16) ** 2 + 1] = step_seconds(subject, 4)
    return {"seconds_by_tokens": found, "exponent": exponent(list(found), list(found.values()))}


def delivery(split: Split, batch_size: int, preprocessing: Preprocessing | None) -> float:
    """Images a second of the second, shuffled epoch; with preprocessing also normalised."""
    sampler = EpochSampler(len(split), seed=0)
    rate = math.nan
    for epoch in range(2):
        sampler.set_epoch(epoch)
        start = time.perf_counter()
        for one in batches(split, batch_size, sampler=sampler):
            if preprocessing is not None:
                normalise(one["images"], preprocessing)
        rate = len(split) / (time.perf_counter() - start)
    return rate


def new_split(folder: Path, num_images: int, size: int) -> Split:
    """Random images on disk, mapped."""
    chunk = np.random.default_rng(0).integers(0, 256, (500, size, size, 3), dtype=np.uint8)
    with new_array(folder, "images", (num_images, size, size, 3)) as writer:
        for number in range(num_images):
            writer.append(chunk[number % len(chunk)])
    store_index(folder, "images", {})
    found = lookup(folder, "images")
    assert found is not None
    labels = np.arange(num_images, dtype=np.int64) % 10
    return Split("train", found[0], labels, ("",) * num_images, tuple("0123456789"))


def input_path() -> dict[str, Any]:
    """Images delivered and consumed at 224 px by a ViT-Ti step, in the same process."""
    subject = Subject(Contestant.parse("rlrr"), TINY, CPU)
    consumed = 32 / step_seconds(subject, 32)
    preprocessing = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        delivered = delivery(new_split(Path(folder), 2000, 224), 32, preprocessing)
    return {"delivered": delivered, "consumed": consumed, "ratio": delivered / consumed}


def stream() -> dict[str, Any]:
    """200,000 images of 32 px from the map and from memory."""
    with tempfile.TemporaryDirectory() as folder:
        mapped = new_split(Path(folder), 200_000, 32)
        held = Split("train", np.array(mapped.images), mapped.labels, mapped.paths, mapped.classes)
        rates = [(delivery(mapped, 256, None), delivery(held, 256, None)) for _ in range(3)]
    best = [max(column) for column in zip(*rates, strict=True)]
    return {"mapped": best[0], "memory": best[1], "ratio": best[0] / best[1]}


def processes() -> dict[str, Any]:
    """Two processes in one run (gloo), two that know nothing of each other, and one alone."""
    words = ["train", "--data", "demo:digits?train=1200", "--epochs", "4"]
    words += ["--lr", "1e-2", "--batch-size", "16", "--out"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        together = _rate([[sys.executable, "-m", *LAUNCH, *words, str(root / "both")]], root)
        apart = _rate(
            [[sys.executable, "-m", "vitune", *words, str(root / name)] for name in "ab"], root
        )
        alone = _rate([[sys.executable, "-m", "vitune", *words, str(root / "alone")]], root)
    return {
        "together": together,
        "apart": apart,
        "alone": alone,
        "loss_against_apart": 1 - together / apart,
        "gain_over_alone": together / alone,
    }


def _rate(commands: list[list[str]], root: Path) -> float:
    """Images a second of all runs together, from their last three epochs' own clocks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(c, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for c in commands
    ]
    if any([process.wait() for process in running]):
        raise SystemExit(f"a run failed: {commands}")
    total = 0.0
    for command in commands:
        rows = [json.loads(line) for line in (Path(command[-1]) / "metrics.jsonl").open()]
        total += median(row["images_per_s"] for row in rows[1:])
    return total


def run() -> dict[str, Any]:
    """`vitune train` on cifar for 100 epochs: the share of wall time in training steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vitune", "train", "--data", CIFAR, "--out", str(out)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wall = time.perf_counter() - start
        rows = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    inside = sum(row["train_seconds"] for row in rows)
    return {"wall": wall, "in_steps": inside, "share": inside / wall, "epochs": len(rows)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "tokens": tokens,
    "input": input_path,
    "stream": stream,
    "processes": processes,
    "run": run,
}


def main() -> None:
    """Measure the parts asked for and keep them as JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON; parts measured before stay in it")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by ,")
    asked = parser.parse_args()
    path = Path(asked.out)
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in asked.only.split(","):
        found[name] = PARTS[name]()
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name]), flush=True)


if __name__ == "__main__":
    main()
