"""vitune info: what is in a run, an adapter or a merged model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from vitune.runs import RunFolder


def add_to(app: typer.Typer) -> None:
    """Register the command."""
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
        table.add_row(name, _WORDS.get(name, _shown)(value))
    console.print(table)


def _facts(path: str) -> dict[str, Any]:
    from dataclasses import asdict
    from pathlib import Path

    from vitune.cards import KEEP, AdapterCard, adapter_folder
    from vitune.report import read_run
    from vitune.runs import RunFolder

    run = RunFolder(Path(path))
    folder = adapter_folder(path)
    card = AdapterCard.read(folder)
    tensors = list(folder.glob("*.safetensors"))
    facts: dict[str, Any] = {
        "method": card.method,
        **({"plugin": card.plugin} if card.plugin else {}),
        **({"tokens": card.tokens} if card.tokens != KEEP else {}),
        "arguments": card.method_args,
        "backbone": card.backbone,
        "backbone arguments": card.backbone_args,
        "fingerprint": card.fingerprint,
        "input": asdict(card.preprocessing),
        "classes": list(card.classes),
        "temperature": card.temperature,
        "bytes on disk": sum(file.stat().st_size for file in tensors),
        "versions": card.versions,
    }
    if not run.config.is_file():
        return facts
    results = read_run(run.path)
    if results.summary is not None:
        summary = results.summary
        if summary.speed is not None:
            facts["speed"] = summary.speed
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
    facts |= _exits(run)
    for evaluation in results.evaluations:
        marks = " ".join(evaluation.marks)
        facts[f"accuracy on {evaluation.name}"] = evaluation.top1
        if marks:
            facts[f"note on {evaluation.name}"] = marks
    return facts


def _exits(run: RunFolder) -> dict[str, Any]:
    """Where the exits are, and what is certified of the thresholds."""
    from vitune.exits import ExitsFolder, Thresholds

    folder = ExitsFolder(run.path)
    record = folder.read_record()
    thresholds = Thresholds.read(folder.thresholds) if folder.thresholds.is_file() else None
    after = thresholds.after if thresholds is not None else record.get("after")
    if after is None:
        return {}
    facts: dict[str, Any] = {"exits": list(after)}
    if thresholds is None:
        return facts | {"certificate": "none: not calibrated, no image leaves early"}
    proof = thresholds.certificate
    facts["thresholds"] = [None if v > 1 else v for v in thresholds.values]
    if proof is None:
        return facts | {"certificate": f"none: chosen for a mean cost of {thresholds.budget:g}"}
    return facts | {
        "certificate": f"{proof.definition} of at most {_shown(proof.risk)} of images, with "
        f"probability {_shown(1 - proof.delta)}, from {proof.num_images:,} images"
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f} %"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        shown = {k: str(v) if isinstance(v, float) else _shown(v) for k, v in value.items()}
        return ", ".join(f"{k} {text}" for k, text in shown.items()) or "-"
    if isinstance(value, list):
        more = f" ... ({len(value)})" if len(value) > 10 else f" ({len(value)})"
        return ", ".join(map(str, value[:10])) + more
    return "-" if value is None else str(value)


def _input(pixels: dict[str, Any]) -> str:
    height, width = pixels["image_size"]
    return (
        f"{height} x {width} px, {pixels['interpolation']}, mean {pixels['mean']}, "
        f"std {pixels['std']}"
    )


def _thresholds(values: list[float | None]) -> str:
    return ", ".join("never" if value is None else f"{value:.4f}" for value in values)


_WORDS: dict[str, Callable[[Any], str]] = {
    "fingerprint": lambda value: value or "none (merged)",
    "input": _input,
    "temperature": lambda value: f"{value:.4g}",
    "exits": lambda blocks: f"after {', '.join(map(str, blocks))} blocks",
    "thresholds": _thresholds,
}
"""How people are shown what JSON holds as numbers; `_shown` does the rest."""
