"""Two more data sets that no default was chosen on: letters in many typefaces, and clip art.

    apt-get download openclipart-png && dpkg -x openclipart-png*.deb RAW
    apt-get download $(apt-cache search --names-only ^fonts- | cut -d' ' -f1)
    for package in fonts-*.deb; do dpkg -x $package RAW/fonts; done
    python studies/clipart_ground.py GROUND --raw RAW

writes folders of images and GROUND/tasks.json for default_rates.py:

- `letters`: A to J, 64 px, black on white; a typeface is in the training or in the test images.
  One of each group of typefaces whose names begin with the same word, 100 for each part (the
  docs' figures are from the 305 packages of less than 400 kB in Debian 12).
- `clipart`: Open Clip Art's drawings on transparent ground, of many shapes and sizes; the twelve
  largest of its folders that say what is drawn, 100 drawings of each for each part at most.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from icon_ground import write
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJ"
SIDE, MARGIN = 64, 6
KINDS = (
    "animals", "computer", "food", "geography", "office", "people", "plants", "recreation",
    "shapes", "signs_and_symbols", "tools", "transportation",
)  # fmt: skip
MAX_PIXELS = 50_000_000
"""Larger drawings are left out; a few have more than vitune reads."""

MOST = 100
"""Typefaces, or drawings of one kind, in each part."""


def typefaces(raw: Path) -> list[list[Image.Image]]:
    """The letters of one typeface of each group, of those that have a form of its own for each.

    Typefaces that share a letter with an earlier one are left out.
    """
    groups: dict[str, list[Image.Image]] = {}
    seen: set[bytes] = set()
    for file in sorted((raw / "fonts").rglob("*")):
        if file.suffix.lower() not in (".ttf", ".otf"):
            continue
        try:
            font = ImageFont.truetype(file, SIDE)
            missing = bytes(font.getmask("\U000effff"))
            if any(bytes(font.getmask(letter)) in (b"", missing) for letter in LETTERS):
                continue
            letters = [drawn(letter, file) for letter in LETTERS]
        except (OSError, ValueError, SystemError):  # bitmaps, or nothing to draw
            continue
        forms = {letter.tobytes() for letter in letters}
        group = (font.getname()[0] or file.stem).split()[0].lower()
        if group not in groups and len(forms) == len(LETTERS) and not forms & seen:
            groups[group] = letters
            seen |= forms
    return list(groups.values())


def drawn(letter: str, typeface: Path) -> Image.Image:
    """The letter, as large as fits and in the middle."""
    left, top, right, bottom = ImageFont.truetype(typeface, SIDE).getbbox(letter)
    scale = (SIDE - 2 * MARGIN) / max(right - left, bottom - top)
    font = ImageFont.truetype(typeface, round(scale * SIDE))
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (SIDE, SIDE), 255)
    corner = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, fill=0, font=font)
    return image


def write_letters(out: Path, faces: list[list[Image.Image]], rng: np.random.Generator) -> None:
    """Folders train/LETTER and test/LETTER."""
    order = rng.permutation(len(faces))[: 2 * MOST]
    for position, index in enumerate(order):
        for letter, image in zip(LETTERS, faces[index], strict=True):
            folder = out / ("train" if position < len(order) // 2 else "test") / letter
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")


def clipart(raw: Path) -> dict[str, list[list[Path]]]:
    """Per kind the drawings, each as one file; of equal drawings the first."""
    root = raw / "usr/share/openclipart/png"
    found: dict[str, list[list[Path]]] = {}
    seen: set[bytes] = set()
    for kind in KINDS:
        for file in sorted((root / kind).rglob("*.png")):
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    continue
                pixels = image.convert("RGBA").resize((SIDE, SIDE)).tobytes()
            if pixels not in seen:
                found.setdefault(kind, []).append([file])
            seen.add(pixels)
    return found


def main() -> None:
    """Write both and say how many images they have."""
    parser = argparse.ArgumentParser(description="Letters and clip art for default_rates.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--raw", type=Path, required=True, help="where the packages were unpacked")
    asked = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # the sizes are asked first
    rng = np.random.default_rng(0)
    write_letters(asked.out / "letters", typefaces(asked.raw), rng)
    write(asked.out / "clipart", clipart(asked.raw), rng, most=MOST)
    tasks = {}
    for name, kind in (("letters", "signs"), ("clipart", "icons")):
        tasks[name] = {"data": str((asked.out / name).resolve()), "kind": kind}
        parts = [len(list((asked.out / name / part).rglob("*.png"))) for part in ("train", "test")]
        print(f"{name}: {parts[0]} training and {parts[1]} test images")
    (asked.out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")


if __name__ == "__main__":
    main()
