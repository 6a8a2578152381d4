"""vitune analyze: the SVD view of trained runs, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vitune.cli._options import DATA, MEASURE, OUTPUT
from vitune.cli._plugins import with_plugins

if TYPE_CHECKING:
    from vitune.analysis import IntruderRule, Retention, RoleSummary, SpectrumReport
    from vitune.runs import RunFolder


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("analyze")(analyze)


@with_plugins
def analyze(
    runs: list[str] = typer.Argument(..., help="run folders, adapters, merged models, or a study"),
    out: str = typer.Option(
        None, "--out", help="new folder; default for one run: RUN/analysis", rich_help_panel=OUTPUT
    ),
    images: str = typer.Option(
        None, "--images", help="images to measure features on", rich_help_panel=DATA
    ),
    num_images: int = typer.Option(
        512, help="largest number of images; 0 skips features", rich_help_panel=DATA
    ),
    along: int = typer.Option(
        6,
        "--along",
        help="largest number of snapshots per run",
        rich_help_panel=MEASURE,
    ),
    intruder_cosine: float = typer.Option(
        0.6,
        "--intruder-cosine",
        help="a vector below this cosine is an intruder; the authors use 0.5",
        rich_help_panel=MEASURE,
    ),
    intruder_side: str = typer.Option(
        "both",
        "--intruder-side",
        help="singular vectors to check: left, right or both; the authors use left",
        rich_help_panel=MEASURE,
    ),
    force: bool = typer.Option(
        False, "--force", help="use a folder that already holds files", rich_help_panel=OUTPUT
    ),
) -> None:
    """Measure what training did to weights and features.

    Measures singular values before and after, relative deviation, subspace angles, effective rank
    and intruder dimensions of every adapted weight; CKA of every block's features; and what each
    method does to left basis, spectrum and right basis, also during training if a run kept
    snapshots ('vitune train --snapshot-every-epochs').

    Writes spectrum.json, CSV files and plots, and adds them to report.html. A study that was run
    with --keep adapters is analysed as a whole: one line per method, mean and standard deviation
    over seeds.
    """
    from pathlib import Path

    from vitune.analysis import IntruderRule, map_effects, write_spectrum
    from vitune.bench.study.kept_adapters import is_study
    from vitune.cli._measured_run import measured_run, print_effects
    from vitune.cli._progress import console
    from vitune.cli._study_analysis import analyze_study
    from vitune.errors import VituneError
    from vitune.files import check_folder
    from vitune.report import write_report
    from vitune.runs import RunFolder

    rule = IntruderRule(intruder_cosine, intruder_side)  # type: ignore[arg-type]
    if out is not None:
        check_folder(out, force=force)
    if len(runs) == 1 and is_study(runs[0]):
        analyze_study(runs[0], out, images, num_images, rule)
        return
    if out is None and (len(runs) > 1 or not RunFolder(Path(runs[0])).config.is_file()):
        raise VituneError("--out: got nothing, expected a folder (only one run has its own).")
    names = _short_names(runs)
    reports: dict[str, SpectrumReport] = {}
    retentions: dict[str, Retention] = {}
    accuracies: dict[str, float] = {}
    measured: list[tuple[str, int | None, RoleSummary]] = []
    validated: set[str] = set()
    for run, name in zip(runs, names, strict=True):
        reports[name], retention = measured_run(run, name, images, num_images, rule)
        measured += _along(run, name, along, rule)
        measured.append((_method_of(run), None, reports[name].overall))
        if retention is not None:
            retentions[name] = retention
        accuracy, on_test = _accuracy(RunFolder(Path(run)))
        if accuracy is not None:
            accuracies[name] = accuracy
            if not on_test:
                validated.add(name)
    folder = Path(out) if out is not None else RunFolder(Path(runs[0])).path / "analysis"
    effects = map_effects(measured)
    write_spectrum(folder, reports, accuracies, retentions, effects, validated=validated)
    _print_summary(reports, retentions)
    print_effects(effects)
    if out is None:
        console.print(f"report: {write_report(runs[0])}", soft_wrap=True)
    else:
        console.print(f"written: {folder}/spectrum.json, spectrum.csv and plots", soft_wrap=True)


def _along(
    run: str, name: str, most: int, rule: IntruderRule
) -> list[tuple[str, int | None, RoleSummary]]:
    """The figures of a run's snapshots: at most `most` of them, evenly from first to last."""
    from pathlib import Path

    from vitune.analysis import spectrum
    from vitune.cli._progress import Counting
    from vitune.inference import load_run
    from vitune.runs import RunFolder

    snapshots = list(RunFolder(Path(run)).snapshots().items())
    if most < 2 or not snapshots:
        return []
    last = len(snapshots) - 1
    places = sorted({round(step * last / (most - 1)) for step in range(most)})
    bar = Counting(f"snapshots of {name}")
    found: list[tuple[str, int | None, RoleSummary]] = []
    try:
        for done, (epoch, folder) in enumerate((snapshots[place] for place in places), start=1):
            model = load_run(folder, merge=False, device="cpu").model
            report = spectrum(model, intruders=rule)
            found.append((_method_of(run), epoch, report.overall))
            bar(done, len(places))
    finally:
        bar.close()
    return found


def _method_of(run: str) -> str:
    """The method with its arguments; runs with the same name are grouped."""
    from vitune.adapters import adapter_folder
    from vitune.cards import AdapterCard

    card = AdapterCard.read(adapter_folder(run))
    given = " ".join(f"{name}={value}" for name, value in sorted(card.method_args.items()))
    return f"{card.method} {given}".strip()


def _accuracy(folder: RunFolder) -> tuple[float | None, bool]:
    """Accuracy on test images, or on validation images if there is no such score; and which."""
    from vitune.report import is_test, read_run

    if not folder.config.is_file():
        return None, False
    results = read_run(folder.path)
    for evaluation in results.evaluations:
        if is_test(evaluation):
            return evaluation.top1, True
    return None if results.summary is None else results.summary.reported.val_accuracy, False


def _short_names(runs: list[str]) -> list[str]:
    """The shortest path endings that distinguish the runs."""
    from pathlib import Path

    parts = [Path(run).resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return runs


def _print_summary(reports: dict[str, SpectrumReport], retentions: dict[str, Retention]) -> None:
    """Print one table: one line per role for one run, one line per run for several."""
    from rich.table import Table

    from vitune.cli._progress import console, percent

    alone = next(iter(reports.values())) if len(reports) == 1 else None
    lines = (
        [(part.role, part) for part in (*alone.summary, alone.overall)]
        if alone
        else [(name, report.overall) for name, report in reports.items()]
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("role" if alone else "run", overflow="fold")
    for title in ("weights", "change", "angle", "eff. rank", "intruders", "CKA last"):
        table.add_column(title, justify="right")
    for name, part in lines:
        kept = retentions.get(name) if not alone else None
        table.add_row(
            name,
            str(part.num_weights),
            percent(part.relative_deviation),
            "-" if part.subspace_degrees is None else f"{part.subspace_degrees:.1f}°",
            "-" if part.effective_rank is None else f"{part.effective_rank:.1f}",
            "-" if part.num_intruders is None else str(part.num_intruders),
            "-" if kept is None else f"{kept.blocks[-1].cka:.3f}",
        )
    console.print(table)
    for name, report in reports.items():
        if report.note:
            console.print(f"{name}: {report.note}", style="dim", soft_wrap=True)
    for name, kept in retentions.items():
        if alone:
            console.print(f"{name}: CKA after the last block {kept.blocks[-1].cka:.3f}")
