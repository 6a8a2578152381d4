"""Two more data sets that no default was chosen on: images on transparent ground, uneven classes.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-apple@16.0.0
    for vendor in google apple; do tar -xzf emoji-datasource-$vendor-*.tgz --transform s,^package,RAW/$vendor,; done
    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb RAW
    python studies/icon_ground.py ICONS --raw RAW

writes folders of links to the images and ICONS/tasks.json for default_rates.py:

- `emoji`: Google's and Apple's drawings of 64 px, in Unicode's nine categories. A symbol is in the
  training or in the test images, in both drawings; of equal flags one is taken.
- `stamps`: cut-out photographs and drawings of animals, food, vehicles and so on, eight folders of
  Tux Paint's stamps with 33 to 247 images, of many shapes and sizes.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

VENDORS = ("google", "apple")
KINDS = ("animals", "food", "household", "plants", "seasonal", "symbols", "town", "vehicles")
MOST = 55
"""Symbols, or stamps, of one class in each part; half of the class where it has fewer."""


def emoji(raw: Path) -> dict[str, list[list[Path]]]:
    """Per category the symbols, each as the files of its drawings."""
    found: dict[str, list[list[Path]]] = {}
    seen: set[bytes] = set()
    for symbol in json.loads((raw / "google/emoji.json").read_text()):
        if symbol["category"] == "Component":  # five patches of skin
            continue
        files = [raw / f"{name}/img/{name}/64/{symbol['image']}" for name in VENDORS]
        files = [file for file in files if file.is_file()]
        contents = {file.read_bytes() for file in files}
        if not contents & seen:  # Norway's flag is also Svalbard's
            found.setdefault(symbol["category"], []).append(files)
        seen |= contents
    return found


def stamps(raw: Path) -> dict[str, list[list[Path]]]:
    """Per kind the stamps, each as one file; the mirrored doubles of some are left out."""
    root = raw / "usr/share/tuxpaint/stamps"
    files = {kind: sorted((root / kind).rglob("*.png")) for kind in KINDS}
    return {
        kind: [[file] for file in found if "_mirror" not in file.stem]
        for kind, found in files.items()
    }


def write(
    out: Path,
    classes: dict[str, list[list[Path]]],
    rng: np.random.Generator,
    most: int = MOST,
) -> None:
    """Folders train/CLASS and test/CLASS of links, `most` things of a class in each part."""
    for name, things in classes.items():
        half = min(most, len(things) // 2)
        order = rng.permutation(len(things))
        for part, chosen in (("train", order[:half]), ("test", order[half : 2 * half])):
            folder = out / part / name
            folder.mkdir(parents=True)
            for index in chosen:
                for drawing, file in enumerate(things[index]):
                    (folder / f"{index}-{drawing}.png").symlink_to(file.resolve())


def main() -> None:
    """Write both and say how many images they have."""
    parser = argparse.ArgumentParser(description="Emoji and stamps for default_rates.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--raw", type=Path, required=True, help="where the packages were unpacked")
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    tasks = {}
    for name, classes in (("emoji", emoji(asked.raw)), ("stamps", stamps(asked.raw))):
        write(asked.out / name, classes, rng)
        tasks[name] = {"data": str((asked.out / name).resolve()), "kind": "icons"}
        parts = [len(list((asked.out / name / part).rglob("*.png"))) for part in ("train", "test")]
        print(f"{name}: {len(classes)} classes, {parts[0]} training and {parts[1]} test images")
    (asked.out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
