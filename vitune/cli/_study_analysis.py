"""`vitune analyze STUDY`: every adapter that a study kept, aggregated over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitune.analysis import IntruderRule, Retention, RoleSummary, SpectrumReport
    from vitune.bench.study.kept_adapters import Figures, KeptAdapter, MethodFigures

SHOWN = (
    ("relative_deviation", "change", "{:.2%}"),
    ("subspace_degrees", "angle", "{:.1f}°"),
    ("effective_rank", "eff. rank", "{:.1f}"),
    ("num_intruders", "intruders", "{:.1f}"),
    ("cka_last", "CKA last", "{:.3f}"),
)


def analyze_study(
    study: str, out: str | None, images: str | None, num_images: int, rule: IntruderRule
) -> None:
    """Measure every kept adapter; print one line per method and write files.

    spectrum.json and the plots show the first seed of every method and task; runs.csv lists every
    run; methods.csv and the tables summarise all runs.
    """
    from vitune.analysis import map_effects, write_spectrum
    from vitune.bench.study.kept_adapters import kept_adapters, methods_csv, over_seeds, runs_csv
    from vitune.cli._measured_run import measured_run, print_effects
    from vitune.cli._progress import console
    from vitune.files import write_atomic

    reports: dict[str, SpectrumReport] = {}
    retentions: dict[str, Retention] = {}
    accuracies: dict[str, float] = {}
    effects: list[tuple[str, int | None, RoleSummary]] = []
    runs: list[tuple[KeptAdapter, Figures]] = []
    seen: set[tuple[str, str]] = set()
    validated: set[str] = set()
    for kept in kept_adapters(study):
        result = kept.result
        report, retention = measured_run(str(kept.folder), kept.name, images, num_images, rule)
        runs.append((kept, _figures(kept, report.overall, retention)))
        effects.append((result.label, None, report.overall))
        if (result.label, result.task) in seen:
            continue
        seen.add((result.label, result.task))
        reports[kept.name] = report
        if retention is not None:
            retentions[kept.name] = retention
        if result.scores is not None:
            accuracies[kept.name] = result.scores.top1
            if result.scored_on == "val":
                validated.add(kept.name)
    folder = Path(out) if out is not None else Path(study) / "analysis"
    by_method = over_seeds(runs)
    measured = map_effects(effects)
    write_spectrum(folder, reports, accuracies, retentions, measured, validated=validated)
    write_atomic(folder / "runs.csv", runs_csv(runs))
    write_atomic(folder / "methods.csv", methods_csv(by_method))
    _print_methods(by_method)
    print_effects(measured)
    console.print(f"written: {folder}/methods.csv, runs.csv, spectrum.json and plots",
                  soft_wrap=True)  # fmt: skip


def _figures(kept: KeptAdapter, overall: RoleSummary, retention: Retention | None) -> Figures:
    """The run's figures; CKA on the given images, else as the study measured it."""
    stored = (kept.result.retention or {}).get("cka_last")
    values = {name: value for name, value in vars(overall).items() if name != "role"}
    return {**values, "cka_last": stored if retention is None else retention.blocks[-1].cka}


def _print_methods(methods: Sequence[MethodFigures]) -> None:
    from vitune.cli._progress import console
    from vitune.cli._tables import print_columns

    lines = [
        (method.label, str(method.num_runs), str(method.num_seeds),
         *(_mean_text(method, name, form) for name, _, form in SHOWN))
        for method in methods
    ]  # fmt: skip
    heads = ("method", "runs", "seeds", *(title for _, title, _ in SHOWN))
    print_columns(heads, lines, widest=22, to=console)
    console.print("Mean ± standard deviation over seeds, each the mean over tasks.", style="dim")


def _mean_text(method: MethodFigures, name: str, form: str) -> str:
    mean, std = method.means.get(name), method.stds.get(name)
    if mean is None:
        return "–"
    return form.format(mean) + ("" if std is None else f" ± {form.format(std)}")
