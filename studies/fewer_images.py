"""Tasks of OUT/tasks.json again, with fewer training images per class.

    python studies/fewer_images.py OUT --tasks sign-digits,textures --per-class 10,25

writes OUT/TASK-NUMBER.csv and adds TASK-NUMBER to OUT/tasks.json. The test images stay. The smaller
set is a part of the larger one: both take the first images of one random order per class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from default_proxies import write_table

from vitune.data import Record, open_source


def first_of_each(records: list[Record], per_class: int) -> list[Record]:
    """At most `per_class` records of each label, in an order that does not depend on the number."""
    order = np.random.default_rng(0).permutation(len(records))
    left = dict.fromkeys({record.label for record in records}, per_class)
    chosen = []
    for index in order:
        record = records[index]
        left[record.label] -= 1
        if left[record.label] >= 0:
            chosen.append(record)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default="sign-digits,textures")
    parser.add_argument("--per-class", default="10,25")
    asked = parser.parse_args()
    path = asked.out / "tasks.json"
    tasks = json.loads(path.read_text())
    for name in asked.tasks.split(","):
        splits = open_source(tasks[name]["data"]).splits
        for per_class in map(int, asked.per_class.split(",")):
            rows = [
                (Path(record.name), record.label, split)
                for split in ("train", "test")
                for record in first_of_each(
                    list(splits[split]), per_class if split == "train" else len(splits[split])
                )
            ]
            data = write_table(asked.out / f"{name}-{per_class}.csv", rows)
            tasks[f"{name}-{per_class}"] = {**tasks[name], "data": data}
    path.write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
