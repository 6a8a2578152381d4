"""vitune bench: studies under the honest protocol, and speed."""

from __future__ import annotations

import typer

bench = typer.Typer(
    help="Run studies under the honest protocol; measure speed.", no_args_is_help=True
)


def add_to(app: typer.Typer) -> None:
    """Register the verb and its own verbs."""
    app.add_typer(bench, name="bench")


@bench.command("study")
def study(
    file: str = typer.Argument(..., help="YAML: variants, tasks, grid, seeds"),
    out: str = typer.Option(..., "--out", help="folder; a stopped study continues in it"),
    jobs: int = typer.Option(1, "--jobs", help="processes on this machine"),
    table_format: str = typer.Option("", "--format", help="also print markdown, csv or latex"),
) -> None:
    """Run a study from a file: search on validation, refit, open the test split once."""
    from vitune.bench.execution import InProcess, Processes
    from vitune.bench.formats import formatted
    from vitune.bench.protocol import run_study
    from vitune.bench.study import Study
    from vitune.bench.table import make_table
    from vitune.cli._progress import console
    from vitune.cli._study import StudyProgress, print_table

    watcher = StudyProgress()
    try:
        executor = InProcess() if jobs == 1 else Processes(jobs)
        outcome = run_study(Study.read(file), out, executor=executor, watcher=watcher)
    finally:
        watcher.close()
    table = make_table(outcome.results)
    print_table(table)
    if table_format:
        typer.echo(formatted(table, table_format))
    if outcome.failures:
        console.print(f"[yellow]{len(outcome.failures)} runs failed; run again to retry them[/]")
