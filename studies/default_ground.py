"""The tasks that vitune's defaults are judged on: photographs at four sizes, drawn and real images.

    python studies/default_ground.py OUT [--shared ../shared]

writes OUT/NAME.csv where a task is a part of CIFAR (path, label, split; the images stay where they
are) and OUT/tasks.json with the data source and the kind of every task. The photographs with 50 and
200 images per class are told apart by CIFAR's 20 superclasses and by pairs of these.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

SUPERCLASSES = """
beaver dolphin otter seal whale / aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip / apple mushroom orange pear sweet_pepper
bottle bowl can cup plate / clock keyboard lamp telephone television
bed chair couch table wardrobe / bridge castle house road skyscraper
bee beetle butterfly caterpillar cockroach / crab lobster snail spider worm
bear leopard lion tiger wolf / fox porcupine possum raccoon skunk
cloud forest mountain plain sea / maple_tree oak_tree palm_tree pine_tree willow_tree
camel cattle chimpanzee elephant kangaroo / hamster mouse rabbit shrew squirrel
baby boy girl man woman / crocodile dinosaur lizard snake turtle
bicycle bus motorcycle pickup_truck train / lawn_mower rocket streetcar tank tractor
"""

PHOTOGRAPHS = (("cifar-5", 0, 5), ("cifar-50", 1, 50), ("cifar-200", 2, 200))
"""Name, level of grouping (classes, superclasses, pairs of superclasses), training images each."""

DRAWN = ("count", "distance", "location", "orientation", "azimuth")
MAX_TEST = 2000


def groups(level: int, classes: list[str]) -> list[int]:
    """For each CIFAR class the number of its group."""
    pairs = [line.split(" / ") for line in SUPERCLASSES.strip().splitlines()]
    singles = [one.split() for pair in pairs for one in pair]
    doubles = [" ".join(pair).split() for pair in pairs]
    table = [[name] for name in classes] if level == 0 else singles if level == 1 else doubles
    return [next(i for i, names in enumerate(table) if name in names) for name in classes]


def write_photographs(root: Path, out: Path, name: str, level: int, per_class: int) -> str:
    """One table over all labelled CIFAR images there are, cut into train and test."""
    classes = (root / "classes.txt").read_text().split()
    lines = [
        line.split()
        for file in ("train800val200.txt", "test.txt")
        for line in (root / file).read_text().splitlines()
    ]
    of_class = groups(level, classes)
    labels = np.array([of_class[int(label)] for _, label in lines])
    order = np.random.default_rng(0).permutation(len(lines))
    train: list[int] = []
    for group in range(max(of_class) + 1):
        train += order[labels[order] == group][:per_class].tolist()
    test = [index for index in order if index not in set(train)][:MAX_TEST]
    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for split, chosen in (("train", train), ("test", test)):
            for index in chosen:
                writer.writerow((str((root / lines[index][0]).resolve()), labels[index], split))
    return str((out / f"{name}.csv").resolve())


def write_ground(out: Path, shared: Path) -> dict[str, dict[str, str]]:
    """All tasks by name: {"data": source, "kind": photographs, drawn or signs}."""
    out.mkdir(parents=True, exist_ok=True)
    cifar = shared / "data" / "vtab-1k" / "cifar"
    tasks = {
        name: {
            "data": write_photographs(cifar, out, name, level, per_class),
            "kind": "photographs",
        }
        for name, level, per_class in PHOTOGRAPHS
    }
    tasks["cifar-10"] = {"data": f"vtab:{cifar.resolve()}", "kind": "photographs"}
    tasks["sign-digits"] = {
        "data": str((shared / "data" / "sign-digits").resolve()),
        "kind": "signs",
    }
    tasks["digits"] = {"data": "demo:digits?train=1000", "kind": "signs"}
    tasks |= {name: {"data": f"demo:{name}", "kind": "drawn"} for name in DRAWN}
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def main() -> None:
    """Write the ground and say how many tasks it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    asked = parser.parse_args()
    print(f"{len(write_ground(asked.out, asked.shared))} tasks: {asked.out / 'tasks.json'}")


if __name__ == "__main__":
    main()
