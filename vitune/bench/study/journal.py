"""A study's journal: which cell belongs to which method, task and seed, written when planned.

`OUT/study.yaml` is the study, `OUT/study.jsonl` has one line per planned final run and per choice
of stage 1. A line is appended before its run starts, so that the journal and the cells always give
a table. If two lines concern the same run, the later one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.choosing import Choice
from vitune.bench.study.plan import Study, Task, Variant
from vitune.bench.study.store import Store
from vitune.errors import VituneError, one_line
from vitune.files import write_atomic

STUDY, JOURNAL, OLD_MANIFEST = "study.yaml", "study.jsonl", "study.json"

FREE = ("name", "seeds", "missing", "remarks", "keep", "allow_overlap", "variants", "tasks")
"""Fields of Study that may change without affecting the runs of a method on a task."""

STAGE_1 = ("grid", "search", "selection_seeds")

PLACES = ("checkpoint", "data")
"""Paths: a file is known by its content, so it may move."""

Line = dict[str, Any]
Key = tuple[str, str, int | None]


class Journal:
    """Appends a study's plans; lines that could not be written are retried later.

    Args:
        out: the study's folder.
        study: the study of these lines.
    """

    def __init__(self, out: Path, study: Study) -> None:
        self.path = out / JOURNAL
        self.rows = {
            (variant.label, task.name): row_of(study, variant, task)
            for variant in study.variants
            for task in study.tasks
        }
        self.last = {_key(line): line for line in _lines(self.path)}
        self.waiting: list[Line] = []

    @classmethod
    def begin(cls, out: Path, study: Study) -> Journal:
        """Write the study into its folder, and open its journal.

        Raises:
            VituneError: the folder holds another study.
        """
        path = out / STUDY
        if path.is_file() and any((out / "cells").glob("*.json")):
            _require_same(_there(path), study, out)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _yaml(study))
        return cls(out, study)

    def planned(self, cells: Sequence[Cell]) -> None:
        """Record final cells that are about to run."""
        self._append(
            self._line(c.label, c.task, c.config.seed, c.group, address=c.address, val=c.val)
            for c in cells
        )

    def absent(self, results: Sequence[CellResult]) -> None:
        """Record runs that cannot be made, with the reason in place of an address."""
        self._append(
            self._line(r.label, r.task, r.seed, r.group, result=json.loads(r.to_json()))
            for r in results
        )

    def chosen(self, choice: Choice) -> None:
        """Record that stage 1 of a method on a task is over."""
        self._append([self._line(choice.label, choice.task, None, None, choice=vars(choice))])

    def _line(
        self, label: str, task: str, seed: int | None, group: str | None, **values: Any
    ) -> Line:
        row = self.rows[label, task]
        return {"row": row, "label": label, "task": task, "seed": seed, "group": group, **values}

    def _append(self, lines: Iterable[Line]) -> None:
        for line in lines:
            as_read = json.loads(json.dumps(line))
            if self.last.get(_key(as_read)) != as_read:
                self.last[_key(as_read)] = as_read
                self.waiting.append(as_read)
        if not self.waiting:
            return
        text = "\n" + "".join(json.dumps(line) + "\n" for line in self.waiting)
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:  # in one write, after anything a killed process left unfinished
                os.write(handle, text.encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError:  # a full disk must not stop the study
            return
        self.waiting.clear()


def read_study(out: str | Path) -> Study:
    """The study in a folder.

    Raises:
        VituneError: the folder holds none.
    """
    path = Path(out) / STUDY
    if not path.is_file():
        raise VituneError(
            f"study: got {str(out)!r} without {STUDY}, expected a folder that "
            "'vitune bench run --out' wrote."
        )
    return Study.read(path)


def read_missing(out: str | Path) -> tuple[str, ...]:
    """The tasks that the study in a folder had to leave out; none if there is no study."""
    return read_study(out).missing if (Path(out) / STUDY).is_file() else ()


def read_remarks(out: str | Path) -> tuple[str, ...]:
    """The notes to show below every table of the study in a folder."""
    return read_study(out).remarks if (Path(out) / STUDY).is_file() else ()


def read_results(out: str | Path) -> list[CellResult]:
    """The final results of the study in a folder, finished or not, under its own names.

    Planned runs without a result are left out; `read_unfinished` lists them.

    Raises:
        VituneError: the folder holds no study.
    """
    study, store = read_study(out), Store(out)
    if not (Path(out) / JOURNAL).is_file():
        return _old_results(Path(out), store)
    found = (_result(line, store) for line in _runs(Path(out), study))
    return [result for result in found if result is not None]


def read_unfinished(out: str | Path) -> list[tuple[str, str, int]]:
    """(label, task, seed) of the runs that the study in a folder still has to make.

    Raises:
        VituneError: the folder holds no study.
    """
    study = read_study(out)
    if not (Path(out) / JOURNAL).is_file() and (Path(out) / OLD_MANIFEST).is_file():
        return []
    done = {(result.label, result.task, result.seed) for result in read_results(out)}
    return [
        (variant.label, task.name, seed)
        for variant in study.variants
        for task in study.tasks
        for seed in study.seeds
        if (variant.label, task.name, seed) not in done
    ]


def read_choices(out: str | Path) -> list[Choice]:
    """What stage 1 of the study in a folder has chosen and tried so far.

    Raises:
        VituneError: the folder holds no study.
    """
    study = read_study(out)
    if not (Path(out) / JOURNAL).is_file():
        return [_choice(values) for values in _old_manifest(Path(out), "choices")]
    last = {_key(line): line for line in _lines(Path(out) / JOURNAL)}
    keys = [
        (row_of(study, variant, task), "choice", None)
        for task in study.tasks
        for variant in study.variants
    ]
    return [_choice(last[key]["choice"]) for key in keys if key in last]


def row_of(study: Study, variant: Variant, task: Task) -> str:
    """16 hex digits over everything in a study that affects a method's figures on a task."""
    parts = [  # without defaults, so that a field that vitune gains later changes nothing
        study.model_dump(mode="json", exclude=set(FREE), exclude_defaults=True),
        variant.model_dump(mode="json", exclude_defaults=True),
        task.model_dump(mode="json", exclude={"group"}, exclude_defaults=True),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _runs(out: Path, study: Study) -> Iterator[Line]:
    """The last line of every run of the study, in the study's order."""
    last = {_key(line): line for line in _lines(out / JOURNAL)}
    for task in study.tasks:
        for variant in study.variants:
            row = row_of(study, variant, task)
            for seed in study.seeds:
                if (row, "run", seed) in last:
                    yield {**last[row, "run", seed], "group": task.group}


def _result(line: Line, store: Store) -> CellResult | None:
    if line.get("result") is not None:
        return CellResult.from_json(json.dumps(line["result"]))
    try:
        found = store.read(str(line["address"]))
        names = {name: line[name] for name in ("label", "task", "group", "val")}
    except KeyError as error:
        raise _damaged(f"no entry {error}") from None
    return None if found is None else replace(found, stage="final", **names)


def _lines(path: Path) -> Iterator[Line]:
    """Every complete line; one torn by a kill is skipped."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            _key(line)
        except (ValueError, TypeError, KeyError):
            continue
        yield line


def _key(line: Line) -> Key:
    return line["row"], "choice" if "choice" in line else "run", line["seed"]


def _choice(values: Any) -> Choice:
    try:
        choice = Choice(**{**values, "tried": tuple((dict(s), v) for s, v in values["tried"])})
        return TypeAdapter(Choice).validate_python(asdict(choice))
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(one_line(error)) from None


def _damaged(what: str) -> VituneError:
    return VituneError(
        f"{JOURNAL}: got a damaged line ({what}), expected a line that the study wrote. Run the "
        "study again into a new folder, or replace the file with an intact copy."
    )


def _there(path: Path) -> Study:
    try:
        return Study.read(path)
    except VituneError as error:
        raise VituneError(
            f"--out: got {str(path.parent)!r} with a study that this version of vitune cannot read "
            f"({error}), expected a new folder."
        ) from None


def _require_same(there: Study, here: Study, out: Path) -> None:
    """Check that this is the folder's study: what both contain must be the same.

    Seeds, methods, tasks, the grid and the search may differ.

    Raises:
        VituneError: it is another study; the message names the first difference.
    """
    difference = _difference(there, here)
    if difference:
        raise VituneError(
            f"--out: got {str(out)!r}, which holds another study ({difference}), expected a new "
            "folder, or the same study with other seeds, methods, tasks or grid. Its runs are "
            "kept as they are."
        )


def _difference(there: Study, here: Study) -> str:
    shared_variants = _shared(there.variants, here.variants, "label")
    shared_tasks = _shared(there.tasks, here.tasks, "name")
    if not shared_variants or not shared_tasks:
        return "with no method and task in common"
    for what, one, other, free in (
        ("", there, here, (*FREE, *STAGE_1)),
        *((f"{a.label}: ", a, b, ("grid",)) for a, b in shared_variants),
        *((f"{a.name}: ", a, b, ("group",)) for a, b in shared_tasks),
    ):
        theirs, ours = (side.model_dump(exclude={*free, *PLACES}) for side in (one, other))
        for name, value in theirs.items():
            if value != ours[name]:
                return f"{what}{name} is {value!r} there and {ours[name]!r} here"
    return ""


def _shared(there: Sequence[Any], here: Sequence[Any], name: str) -> list[tuple[Any, Any]]:
    ours = {getattr(one, name): one for one in here}
    return [(one, ours[getattr(one, name)]) for one in there if getattr(one, name) in ours]


def _old_results(out: Path, store: Store) -> list[CellResult]:
    """Results of a study from before the journal existed."""
    found = [(store.read(e["address"]), e) for e in _old_manifest(out, "results")]
    return [
        replace(result, label=e["label"], task=e["task"], group=e["group"], val=e["val"])
        for result, e in found
        if result is not None
    ]


def _old_manifest(out: Path, part: str) -> list[dict[str, Any]]:
    path = out / OLD_MANIFEST
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text())[part])
    except (ValueError, KeyError, TypeError) as error:
        raise VituneError(f"{path}: got a damaged file ({error}), run the study again.") from None


def _yaml(study: Study) -> str:
    import yaml

    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
