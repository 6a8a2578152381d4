"""Tasks of OUT/tasks.json again, with fewer training images per class.

    python studies/fewer_images.py OUT --tasks sign-digits,textures --per-class 10,25

draws images as `vitune bench run --shots` does, writes OUT/TASK-NUMBER-0.csv and adds
TASK-NUMBERshot to OUT/tasks.json. The test images stay, and the smaller set is a part of the larger
one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitune.bench.study.plan import Task
from vitune.bench.suites.shots import with_shots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default="sign-digits,textures")
    parser.add_argument("--per-class", default="10,25")
    asked = parser.parse_args()
    path = asked.out / "tasks.json"
    tasks = json.loads(path.read_text())
    whole = [Task(name=name, data=tasks[name]["data"]) for name in asked.tasks.split(",")]
    numbers = [int(number) for number in asked.per_class.split(",")]
    for few in with_shots(whole, numbers, asked.out.resolve()):
        kind = tasks[few.name.removesuffix(f"-{few.shots}shot")]["kind"]
        tasks[few.name] = {"data": few.data, "kind": kind}
    path.write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
