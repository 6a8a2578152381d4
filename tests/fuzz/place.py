"""Where cases run: a folder of a user's things, made once, and put back before each case."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from cases import Case, cases, counts_of
from damage import damage
from images import CONTAINERS, containers, write_image
from PIL import Image

MOST_LINES = 4
STUDY_VERBS = ("compare", "bench run", "bench study")
"""Exit code 1 of these says that some runs failed or diverged."""
HEAVY = [
    "timm", "peft", "transformers.models.vit.modeling_vit", "torch._dynamo",
    "torchmetrics.classification", "matplotlib.pyplot", "pandas", "pyarrow.parquet",
    "scipy.stats", "sklearn.linear_model",
    "vitune.training.fitting", "vitune.bench.study.protocol",
]  # fmt: skip
"""What most commands import: the first of them need not do so in a process that then ends."""
SETTINGS: dict[str, Any] = {"data": "photos", "epochs": 1, "image_size": 16, "batch_size": 4}
STUDY: dict[str, Any] = {
    "variants": [{"label": "probe", "method": "linear"}],
    "tasks": [{"name": "photos", "data": "photos"}],
    "backbone": "vitune/vit_micro_patch4_32",
    "image_size": 16,
    "epochs": 1,
    "seeds": [0],
}

Snapshot = dict[str, tuple[int, str]]
"""Mode and content of each path."""
Stamps = dict[str, tuple[int, int, int]]
"""Mode, inode and time of the last change of each path: cheap to take and hard to forge."""


class Place:
    """A folder `here` with photos, lists, runs and a study, and a worker that runs commands in it.

    The path stays the same for all cases, because runs know their images by absolute paths.
    """

    def __init__(self, root: Path, num_cases: int, start: int) -> None:
        self.here, self.template, self.told = root / "here", root / "template", root / "told"
        for folder in (self.here, self.told, root / "home"):
            folder.mkdir(parents=True)
        environment = {
            **os.environ, "VITUNE_CACHE": str(root / "cache"), "HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80",
            "TQDM_DISABLE": "1",  # main sets it, but tqdm reads it when it is imported
        }  # fmt: skip
        worker = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        self.worker = subprocess.Popen(
            [*worker, json.dumps(counts_of(num_cases)), str(start)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        self.drawn: dict[str, list[Any]] = self._answer()
        self.cases = cases(self.drawn, start, containers())

    def close(self) -> None:
        assert self.worker.stdin is not None and self.worker.stdout is not None
        self.worker.kill()
        self.worker.wait()
        self.worker.stdin.close()
        self.worker.stdout.close()

    def fill(self) -> None:
        """Make what a user may have; every later command finds its modules imported."""
        _write_photos(self.here)
        self.ask({"import": HEAVY})
        start = "train --data photos --image-size 16 --batch-size 4 --epochs"
        for words in (
            f"{start} 1 --out run", "evaluate run", "merge run --out merged",
            "compare --data photos --methods linear_sgd --epochs 1 --image-size 16 --seeds 1 "
            "--lrs 1e-2,1e-3 --out study",
            "analyze run --num-images 0 --out gone", "data check photos.parquet",
            "bench table study",
        ):  # fmt: skip
            self._set_up(words)
        shutil.rmtree(self.here / "gone")
        self.run(f"{start} 2 --out stopped".split(), limit=100, die_at="checkpoint")
        for part in self.here.rglob(".*"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        assert (self.here / "stopped/checkpoint/state.json").is_file()
        self.here.rename(self.template)
        self.whole = snapshot(self.template)
        self.stamps: Stamps = {}

    def _set_up(self, words: str) -> None:
        modules = self.told / "modules"
        result = self.run(words.split(), limit=300, modules=str(modules))
        assert result["code"] == 0, f"{words}: {self.told_on('stderr')}"
        self.ask({"import": json.loads(modules.read_text())})

    def run(self, argv: list[str], **more: Any) -> dict[str, Any]:
        """Exit code (None: killed at the limit) and seconds of a command."""
        return self.ask({"argv": argv, "folder": str(self.here), "told": str(self.told), **more})

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.worker.stdin is not None
        self.worker.stdin.write(json.dumps(request) + "\n")
        self.worker.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.worker.stdout is not None
        return json.loads(self.worker.stdout.readline())

    def told_on(self, stream: str) -> str:
        return (self.told / stream).read_text(errors="backslashreplace")

    def faults(self, case: Case) -> list[str]:
        """What is wrong with how a command takes the damage; empty where nothing is."""
        self.put_back()
        self._mutate(case)
        before = self.snapshot()
        result = self.run(case.argv)
        code, error = result["code"], self.told_on("stderr")
        found = []
        if code is None:
            found.append(f"no end after {result['seconds']:.0f} s")
        elif code not in _codes(case.argv):
            found.append(f"exit code {code}")
        if "Traceback" in error or "Traceback" in self.told_on("stdout"):
            found.append("a traceback")
        if len(error.splitlines()) > MOST_LINES:
            found.append(f"{len(error.splitlines())} lines on stderr")
        if code == 2 and not error.strip() and case.argv[:2] != ["data", "check"]:
            found.append("exit code 2 without a word")
        found += changes(before, self.snapshot(), case.argv, code)
        return found

    def put_back(self) -> None:
        """Make `here` what `template` is; only what was changed since is copied."""
        self.here.mkdir(exist_ok=True)
        for name, stamp in stamps(self.here).items():
            if self.stamps.get(name) != stamp:
                _remove(self.here / name, stat.S_ISDIR(stamp[0]))
        for name, (mode, _) in self.whole.items():
            path = self.here / name
            if not os.path.lexists(path):
                if stat.S_ISDIR(mode):
                    path.mkdir()
                    path.chmod(stat.S_IMODE(mode))
                else:
                    shutil.copy2(self.template / name, path, follow_symlinks=False)
        self.stamps = stamps(self.here)

    def snapshot(self) -> Snapshot:
        """Kind and content of everything in `here`; what was not touched is not read again."""
        found = stamps(self.here)
        touched = [name for name, stamp in found.items() if self.stamps.get(name) != stamp]
        return {name: self.whole[name] for name in found if name not in touched} | snapshot(
            self.here, touched
        )

    def _mutate(self, case: Case) -> None:
        before = Path.cwd()
        os.chdir(self.here)
        try:
            if case.kind == "image":
                odd = Path("photos/blue/odd").with_suffix(CONTAINERS[case.target])
                write_image(odd, case.target, *case.draw)
            elif case.kind == "table" and case.draw[0] in ("cell", "column"):
                _change_table(Path(case.target), *case.draw)
            elif case.draw:
                if case.unchecked:
                    _take_checksums(Path(case.target.partition("/")[0]))
                damage(next(Path().glob(case.target)), *case.draw)
        finally:
            os.chdir(before)


def _remove(path: Path, is_folder: bool) -> None:
    if is_folder:
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def stamps(folder: Path) -> Stamps:
    """A mark of everything below a folder. A folder's own changes are those of what it holds."""
    found: Stamps = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        is_folder = stat.S_ISDIR(told.st_mode)
        when = (0, 0) if is_folder else (told.st_ino, told.st_ctime_ns)
        found[path.relative_to(folder).as_posix()] = (told.st_mode, *when)
    return found


def snapshot(folder: Path, names: Iterable[str] | None = None) -> Snapshot:
    """Kind and content of everything below a folder, or of these paths; no link is followed."""
    found: Snapshot = {}
    for name in stamps(folder) if names is None else names:
        path = folder / name
        mode = path.lstat().st_mode
        content = ""
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = (mode, content)
    return found


def changes(before: Snapshot, after: Snapshot, argv: list[str], code: int | None) -> list[str]:
    """What the command changed that is not its to change."""
    places = _outputs(argv)
    found = []
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        is_output = any(
            name == place or name.startswith(f"{place}/")
            or (place.startswith(f"{name}/") and name not in before)
            for place in places
        )  # fmt: skip
        if name not in before and name.endswith((".part", ".previous", ".lock")):
            found.append(f"left {name}")
        elif not is_output or (name in before and not _may_change(argv, code)):
            found.append(f"{'changed' if name in before else 'wrote'} {name}")
    return found


def _may_change(argv: list[str], code: int | None) -> bool:
    """Whether the command may change what was there where it writes."""
    if "--force" in argv:
        return True
    goes_on = "--resume" in argv or argv[0] in ("evaluate", "analyze", *STUDY_VERBS)
    return goes_on and code != 2


def _outputs(argv: list[str]) -> list[str]:
    """Where a command may write, relative to the folder."""
    writable = {"--out", *(["--known"] if "--remember" in argv else [])}
    places = [after for word, after in itertools.pairwise(argv) if word in writable]
    if argv[:2] == ["data", "fake"]:
        places += argv[2:3]
    if argv[0] == "demo" and not places:
        places.append("runs")
    if argv[0] in ("evaluate", "analyze"):
        named = [word for word in argv[1:] if not word.startswith("--")]
        inner = ("evaluation", "analysis", "report.html")
        places += [os.path.normpath(os.path.join(word, name)) for word in named for name in inner]
    return [os.path.normpath(place) for place in places if place]


def _codes(argv: list[str]) -> tuple[int, ...]:
    is_study = any(" ".join(argv).startswith(verb) for verb in STUDY_VERBS)
    return (0, 1, 2) if is_study else (0, 2)


def _write_photos(here: Path) -> None:
    """Twelve images of two classes, lists of them, and settings for training and a study."""
    generator = np.random.default_rng(0)
    lines = []
    for channel, name in enumerate(("blue", "red")):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(here / "photos" / name / f"{number}.png")
            split = ("train", "train", "train", "train", "val", "test")[number]
            lines.append((f"photos/{name}/{number}.png", name, split))
    table = pd.DataFrame(lines, columns=["path", "label", "split"])
    for stem, columns in (("photos", ["path", "label"]), ("split", ["path", "label", "split"])):
        table[columns].to_csv(here / f"{stem}.csv", index=False)
        table[columns].to_parquet(here / f"{stem}.parquet", index=False)
    (here / "train.yaml").write_text(yaml.safe_dump(SETTINGS))
    (here / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (here / "notes.txt").write_text("the user's own\n")
    (here / "link").symlink_to("notes.txt")


def _take_checksums(folder: Path) -> None:
    """A card as an older release wrote it: what lies beside it is then read, whatever it holds."""
    for card in folder.rglob("vitune.json"):
        card.write_text(json.dumps({**json.loads(card.read_text()), "checksums": {}}))


def _change_table(path: Path, what: str, place: int, *parameters: Any) -> None:
    """Put a text into a cell, or give a column another type."""
    is_csv = path.suffix == ".csv"
    table = pd.read_csv(path, dtype=str) if is_csv else pd.read_parquet(path)
    name = table.columns[place % table.shape[1]]
    if what == "cell":
        table.loc[parameters[0] % len(table), name] = parameters[1]
    else:
        odd: dict[str, Any] = {"int": 3, "float": 2.5, "bytes": b"\xff", "list": [1], "null": None}
        table[name] = pd.Series([odd[parameters[0]]] * len(table))
    if is_csv:
        table.to_csv(path, index=False, errors="backslashreplace")
    else:
        table.to_parquet(path, index=False)
