"""Adapters that a study kept, and their figures aggregated over seeds."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitune.bench.study.cells import CellResult
from vitune.bench.study.journal import STUDY, read_results, read_study
from vitune.bench.study.kept import adapter_of, has_adapter
from vitune.errors import VituneError
from vitune.report.intervals import mean_and_std

Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class KeptAdapter:
    """The adapter of one final run.

    Args:
        folder: what `load_run` takes.
        result: of the run.
    """

    folder: Path
    result: CellResult

    @property
    def name(self) -> str:
        """Method, task and seed."""
        return f"{self.result.label}-{self.result.task}-seed{self.result.seed}"


@dataclass(frozen=True)
class MethodFigures:
    """Figures of one method over its tasks and seeds.

    Args:
        num_runs: of all tasks and seeds.
        num_seeds: number of seeds for the spread.
        means: over seeds, of the mean over tasks of each seed.
        stds: sample standard deviations of these means; None for a single seed, or if a seed lacks
            a task that another has.
    """

    label: str
    num_runs: int
    num_seeds: int
    means: Figures
    stds: Figures


def is_study(folder: str | Path) -> bool:
    """Whether a folder is a study's."""
    return (Path(folder) / STUDY).is_file()


def kept_adapters(out: str | Path) -> list[KeptAdapter]:
    """The adapters of the study in a folder, in its order.

    Raises:
        VituneError: there is no study, or it kept no adapter, or one is not the run's.
    """
    study = read_study(out)
    found = [
        KeptAdapter(adapter_of(Path(out), result.address), result)
        for result in read_results(out)
        if result.status == "done" and result.address
    ]
    there = [kept for kept in found if kept.folder.is_dir()]
    for kept in there:
        if not has_adapter(Path(out), kept.result):
            raise VituneError(
                f"{kept.folder}: got other weights than {kept.name} had, expected the adapter that "
                "the study kept. Run it again with --keep adapters: this run is repeated."
            )
    if not there:
        raise VituneError(
            f"study {study.name!r} in {str(out)!r}: got no adapters, expected those of its final "
            "runs. Run it again with --keep adapters: runs without one are repeated."
        )
    return there


def over_seeds(runs: Sequence[tuple[KeptAdapter, Figures]]) -> list[MethodFigures]:
    """Each method's figures: the mean over tasks by seed, then mean and spread over seeds."""
    by_label: dict[str, list[tuple[CellResult, Figures]]] = defaultdict(list)
    for kept, figures in runs:
        by_label[kept.result.label].append((kept.result, figures))
    return [_method_figures(label, own) for label, own in by_label.items()]


def runs_csv(runs: Sequence[tuple[KeptAdapter, Figures]]) -> str:
    """One line per run: method, task, seed, accuracy and every figure."""
    names = list(dict.fromkeys(name for _, figures in runs for name in figures))
    lines = [
        [r.label, r.task, r.seed, r.scores.top1 if r.scores else None,
         *(figures.get(name) for name in names)]
        for r, figures in ((kept.result, figures) for kept, figures in runs)
    ]  # fmt: skip
    return _csv(["method", "task", "seed", "accuracy", *names], lines)


def methods_csv(methods: Sequence[MethodFigures]) -> str:
    """One line per method: runs, seeds, and mean and standard deviation of every figure."""
    names = list(dict.fromkeys(name for method in methods for name in method.means))
    heads = [f"{name}{what}" for name in names for what in ("", "_std")]
    lines = [
        [m.label, m.num_runs, m.num_seeds,
         *(side.get(name) for name in names for side in (m.means, m.stds))]
        for m in methods
    ]  # fmt: skip
    return _csv(["method", "num_runs", "num_seeds", *heads], lines)


def _method_figures(label: str, runs: Sequence[tuple[CellResult, Figures]]) -> MethodFigures:
    names = list(dict.fromkeys(name for _, figures in runs for name in figures))
    found = {name: _over_seeds(name, runs) for name in names}
    return MethodFigures(
        label=label,
        num_runs=len(runs),
        num_seeds=len({result.seed for result, _ in runs}),
        means={name: mean for name, (mean, _) in found.items()},
        stds={name: std for name, (_, std) in found.items()},
    )


def _over_seeds(
    name: str, runs: Sequence[tuple[CellResult, Figures]]
) -> tuple[float | None, float | None]:
    by_seed: dict[int, dict[str, float]] = defaultdict(dict)
    for result, figures in runs:
        value = figures.get(name)
        if value is not None:
            by_seed[result.seed][result.task] = value
    if not by_seed:
        return None, None
    mean, std = mean_and_std([sum(own.values()) / len(own) for own in by_seed.values()])
    even = len({frozenset(own) for own in by_seed.values()}) == 1
    return mean, std if even else None


def _csv(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return buffer.getvalue()
