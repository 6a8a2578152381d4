"""vitune info: what is in a run, an adapter or a merged model."""

from __future__ import annotations

from typing import Any

import typer


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("info")(info)


def info(
    path: str = typer.Argument(..., help="run folder, adapter or merged model"),
    as_json: bool = typer.Option(False, "--json", help="print JSON"),
) -> None:
    """Show a run's method, backbone, classes, counts and scores; load no weights."""
    import json

    from rich.table import Table

    from vitune.cli._progress import console

    facts = _facts(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _shown(value))
    console.print(table)


def _facts(path: str) -> dict[str, Any]:
    from pathlib import Path

    from vitune.cards import AdapterCard, adapter_folder
    from vitune.report import read_run
    from vitune.runs import RunFolder

    run = RunFolder(Path(path))
    folder = adapter_folder(path)
    card = AdapterCard.read(folder)
    tensors = list(folder.glob("*.safetensors"))
    facts: dict[str, Any] = {
        "method": card.method,
        "arguments": card.method_args,
        "backbone": card.backbone,
        "backbone arguments": card.backbone_args,
        "fingerprint": card.fingerprint or "none (merged)",
        "input": f"{card.preprocessing.image_size[0]} x {card.preprocessing.image_size[1]} px, "
        f"{card.preprocessing.interpolation}, mean {card.preprocessing.mean}, "
        f"std {card.preprocessing.std}",
        "classes": list(card.classes),
        "bytes on disk": sum(file.stat().st_size for file in tensors),
        "versions": card.versions,
    }
    if not run.config.is_file():
        return facts
    results = read_run(run.path)
    if results.summary is not None:
        summary = results.summary
        facts["trained parameters"] = {
            "without head": summary.num_trainable_without_head,
            "head": summary.num_head,
            "backbone": summary.num_total,
        }
        if summary.notice:
            facts["note"] = summary.notice
        facts["validation accuracy"] = summary.reported.val_accuracy
        facts["reported epoch"] = summary.reported.epoch
        facts["status"] = summary.status
    for evaluation in results.evaluations:
        marks = " ".join(evaluation.marks)
        facts[f"accuracy on {evaluation.name}"] = evaluation.top1
        if marks:
            facts[f"note on {evaluation.name}"] = marks
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f} %"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        pairs = [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items()]
        return ", ".join(pairs) or "-"
    if isinstance(value, list):
        more = f" ... ({len(value)})" if len(value) > 10 else f" ({len(value)})"
        return ", ".join(map(str, value[:10])) + more
    return "-" if value is None else str(value)
