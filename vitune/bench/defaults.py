"""Default settings: chosen once over several tasks, and what that costs on each."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.bench.study.cells import CellResult
from vitune.bench.study.choosing import Choice
from vitune.bench.study.journal import read_choices, read_study
from vitune.bench.study.plan import Study, Variant
from vitune.bench.tables.study_table import make_table
from vitune.errors import VituneError
from vitune.files import write_output
from vitune.methods import METHODS, get_method


@dataclass(frozen=True)
class Default:
    """The setting of a method with the best mean validation accuracy over tasks.

    Args:
        val: that mean, in [0, 1].
        best_val: mean over tasks of each task's best setting: what tuning would give.
        tasks: the tasks it was chosen on.
        ranking: every setting with its mean, best first.
    """

    label: str
    setting: dict[str, Any]
    val: float
    best_val: float
    tasks: tuple[str, ...]
    ranking: tuple[tuple[dict[str, Any], float], ...]


@dataclass(frozen=True)
class AgainstTuned:
    """A method's default against its per-task tuned setting.

    Args:
        default, tuned: mean accuracy over `tasks`, in [0, 1].
        by_task: (default, tuned) on each.
    """

    label: str
    tasks: tuple[str, ...]
    default: float
    tuned: float
    by_task: dict[str, tuple[float, float]]

    @property
    def gap(self) -> float:
        """Tuned minus default."""
        return self.tuned - self.default


def choose_defaults(choices: Sequence[Choice]) -> list[Default]:
    """One setting per method, by mean validation accuracy over the tasks of stage 1.

    A setting that did not finish on some task is excluded. Ties go to the setting tried first.

    Raises:
        VituneError: no method has a setting that finished on every task.
    """
    found = []
    for label in dict.fromkeys(choice.label for choice in choices):
        own = [choice for choice in choices if choice.label == label and choice.tried]
        if not own:
            continue
        ranking = _ranking(own)
        if ranking:
            best_each = [max(val for _, val in c.tried if val is not None) for c in own]
            found.append(
                Default(
                    label=label,
                    setting=ranking[0][0],
                    val=ranking[0][1],
                    best_val=sum(best_each) / len(best_each),
                    tasks=tuple(choice.task for choice in own),
                    ranking=tuple(ranking),
                )
            )
    if not found:
        raise VituneError(
            "defaults: got no setting that finished on every task, expected a study with a grid of "
            "2 or more settings."
        )
    return found


def default_against_tuned(
    default: Iterable[CellResult], tuned: Iterable[CellResult]
) -> list[AgainstTuned]:
    """Final results at a method's default compared with those at its per-task choice.

    Raises:
        VituneError: no method and task in common.
    """
    tables = [{row.label: row for row in make_table(r).rows} for r in (default, tuned)]
    found = []
    for label, row in tables[0].items():
        other = tables[1].get(label)
        tasks = tuple(t for t in row.figures if other is not None and t in other.figures)
        if other is None or not tasks:
            continue
        by_task = {t: (row.figures[t].mean, other.figures[t].mean) for t in tasks}
        means = [sum(pair[side] for pair in by_task.values()) / len(tasks) for side in (0, 1)]
        found.append(AgainstTuned(label, tasks, means[0], means[1], by_task))
    if not found:
        raise VituneError("defaults: got two studies without a common method and task.")
    return found


def record(
    defaults: Sequence[Default], studies: Sequence[Study], path: str | Path, *, command: str
) -> None:
    """Write the file that holds the default settings of `vitune train`.

    Entries of other backbones, and of methods that are not in `defaults`, are kept.

    Args:
        studies: where the defaults come from; their epochs and settings are recorded.
        command: the command that chose them.

    Raises:
        VituneError: studies of several backbones, or a file with other content.
    """
    backbones = sorted({study.backbone for study in studies})
    if len(backbones) > 1:
        raise VituneError(f"defaults: got studies on {' and '.join(backbones)}, expected one.")
    file = Path(path)
    kept = _kept(file)
    chosen = {d.label: _resolved(d, backbones[0]) for d in defaults}
    records = [_without(chosen, record) for record in kept.get(backbones[0], [])]
    newest = {
        "command": command,
        "tasks": list(defaults[0].tasks),
        "studies": [{"name": s.name, "epochs": s.epochs, "settings": s.settings} for s in studies],
        "settings": chosen,
    }
    kept[backbones[0]] = [*(record for record in records if record["settings"]), newest]
    write_output(file, json.dumps(kept, indent=1) + "\n", force=True)


def defaults_of(folders: Sequence[str | Path]) -> tuple[list[Default], list[Study]]:
    """The defaults from stage 1 of several studies' folders, and the studies.

    Variants that are not a plain method (other arguments, another objective) are left out: a
    default belongs to a method.

    Raises:
        VituneError: a folder without a study, or nothing to choose from.
    """
    studies = [read_study(folder) for folder in folders]
    choices = [
        choice
        for folder, study in zip(folders, studies, strict=True)
        for choice in read_choices(folder)
        if choice.label in _plain_methods(study)
    ]
    return choose_defaults(choices), studies


def choices_table(defaults: Sequence[Default]) -> str:
    """Defaults with their mean validation accuracy and that of per-task tuning, in percent."""
    lines = [
        "| method | default | validation | tuned per task | difference |",
        "|---|---|---:|---:|---:|",
    ]
    for default in defaults:
        setting = ", ".join(f"{name} {value:g}" for name, value in default.setting.items())
        figures = (default.val, default.best_val, default.best_val - default.val)
        cells = [default.label, setting, *(f"{100 * value:.1f}" for value in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain_methods(study: Study) -> set[str]:
    """Labels of variants that are a plain method."""
    plain = {name: Variant(label=name, method=name) for name in METHODS}
    own = [v.model_copy(update={"grid": None}) for v in study.variants]
    return {variant.label for variant in own if variant == plain.get(variant.label)}


def _kept(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The present content of a defaults file; empty if there is none."""
    try:
        kept: Any = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        kept = None
    is_right = isinstance(kept, dict) and all(
        isinstance(records, list) and all(isinstance(r, dict) and "settings" in r for r in records)
        for records in kept.values()
    )
    if not is_right:
        raise VituneError(f"--out: got {str(file)!r}, expected a file of defaults.")
    return dict(kept)


def _without(names: Collection[str], record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of defaults without those of the methods named."""
    kept = {name: value for name, value in record["settings"].items() if name not in names}
    return {**record, "settings": kept}


def _resolved(default: Default, backbone: str) -> dict[str, Any]:
    """The setting with a rate instead of a multiple of the present default."""
    setting = dict(default.setting)
    factor = setting.pop("lr_factor", None)
    if factor is not None:
        setting["lr"] = float(f"{factor * get_method(default.label).default_lr(backbone):.3g}")
    return setting


def markdown_of(rows: Sequence[AgainstTuned]) -> str:
    """The comparison as a Markdown table, percent."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    lines = [
        f"| method | {' | '.join(tasks)} | mean default | mean tuned | tuned - default |",
        f"|---|{'---:|' * (len(tasks) + 3)}",
    ]
    for row in rows:
        cells = [
            f"{100 * row.by_task[t][0]:.1f} / {100 * row.by_task[t][1]:.1f}"
            if t in row.by_task
            else "–"
            for t in tasks
        ]
        means = [f"{100 * row.default:.1f}", f"{100 * row.tuned:.1f}", f"{100 * row.gap:+.1f}"]
        lines.append(f"| {row.label} | {' | '.join([*cells, *means])} |")
    return "\n".join(lines) + "\n"


def _ranking(choices: Sequence[Choice]) -> list[tuple[dict[str, Any], float]]:
    """Settings that finished on every task, with their mean accuracy, best first."""
    ranking = []
    for setting, _ in choices[0].tried:
        values = [_value_of(setting, choice) for choice in choices]
        known = [value for value in values if value is not None]
        if len(known) == len(choices):
            ranking.append((setting, sum(known) / len(known)))
    return sorted(ranking, key=lambda entry: -entry[1])


def _value_of(setting: dict[str, Any], choice: Choice) -> float | None:
    return next((value for tried, value in choice.tried if tried == setting), None)
