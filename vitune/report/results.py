"""The contents of a run folder as frozen records; absent files and values read as None."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.report.evaluations import Evaluation, read_evaluations
from vitune.result_files import (
    as_record,
    read_json,
    read_json_lines,
    read_yaml,
    visible_files,
)
from vitune.runs import RunFolder, RunSummary


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl; accuracies in [0, 1]."""

    epoch: int
    step: int | None
    train_loss: float | None
    lr: float | None
    val_loss: float | None
    val_accuracy: float | None
    images_per_s: float | None
    seconds: float | None


@dataclass(frozen=True)
class Plot:
    """A picture of the analysis/ folder with its caption.

    Args:
        kind: its media type, image/svg+xml or image/png.
        width: as drawn, CSS pixels; None if the file does not say.
    """

    name: str
    caption: str | None
    kind: str
    content: bytes
    width: float | None


@dataclass(frozen=True)
class RunResults:
    """Everything a run folder holds that a report shows."""

    folder: Path
    config: dict[str, Any]
    epochs: tuple[Epoch, ...]
    summary: RunSummary | None
    evaluations: tuple[Evaluation, ...]
    spectrum: dict[str, Any]
    plots: tuple[Plot, ...]


def read_run(run_dir: str | Path) -> RunResults:
    """The results in a run folder; every file but one of config, metrics and summary may be absent.

    Raises:
        VituneError: no such folder, no run in it, or a damaged file (the text names the file, the
            line or the key).
    """
    folder = Path(run_dir)
    files = {name: folder / name for name in ("config.yaml", "metrics.jsonl", "summary.json")}
    if not any(path.is_file() for path in files.values()):
        raise VituneError(
            f"run folder: got {str(run_dir)!r}, expected a folder with one of {', '.join(files)}. "
            "Make one with: vitune train --data IMAGES --out RUN."
        )
    config, metrics, _ = files.values()
    spectrum = folder / "analysis" / "spectrum.json"
    run = RunFolder(folder)
    return RunResults(
        folder=folder,
        config=read_yaml(config, str(config)) if config.is_file() else {},
        epochs=_epochs(metrics) if metrics.is_file() else (),
        summary=run.read_summary(),
        evaluations=read_evaluations(run.evaluations, run.weights_digest()),
        spectrum=_mapping(spectrum) if spectrum.is_file() else {},
        plots=_plots(folder / "analysis"),
    )


def check_readable(run_dir: str | Path) -> None:
    """Check, before a run continues, that its report can show what is there; no summary is needed.

    Raises:
        VituneError: a damaged file.
    """
    folder = Path(run_dir)
    metrics, spectrum = folder / "metrics.jsonl", folder / "analysis" / "spectrum.json"
    if metrics.is_file() and metrics.read_bytes().endswith(b"\n"):  # a torn line is cut off later
        _epochs(metrics)
    if spectrum.is_file():
        _mapping(spectrum)
    read_evaluations(RunFolder(folder).evaluations)


def _mapping(path: Path) -> dict[str, Any]:
    return as_record(read_json(path, str(path)), str(path)).values


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """The epochs in order; if a resumed run repeated an epoch, the later line counts."""
    by_epoch: dict[int, Epoch] = {}
    for line in read_json_lines(path, str(path)):
        line.needed("epoch")
        epoch = line.whole("epoch") or 0
        by_epoch[epoch] = Epoch(
            epoch=epoch,
            step=line.whole("step"),
            train_loss=line.number("train_loss"),
            lr=line.number("lr"),
            val_loss=line.number("val_loss"),
            val_accuracy=line.share("val_accuracy"),
            images_per_s=line.number("images_per_s"),
            seconds=line.number("seconds"),
        )
    return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))


def _plots(folder: Path) -> tuple[Plot, ...]:
    if not folder.is_dir():
        return ()
    captions_file = folder / "captions.json"
    captions = _mapping(captions_file) if captions_file.is_file() else {}
    plots = []
    for path in (*visible_files(folder, ".svg"), *visible_files(folder, ".png")):
        if path.suffix == ".png" and path.with_suffix(".svg").is_file():
            continue  # of an earlier analysis
        content = path.read_bytes()
        caption = captions.get(path.name)
        told = None if caption is None else str(caption)
        plots.append(Plot(path.name, told, _media_type(path, content), content, _width(content)))
    return tuple(plots)


def _media_type(path: Path, content: bytes) -> str:
    if path.suffix == ".png" and content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if path.suffix == ".svg" and b"<svg" in content[:1000]:
        return "image/svg+xml"
    expected = path.suffix[1:].upper()
    raise VituneError(
        f"{path}: got {content[:8]!r} at its start, expected a picture of the kind {expected}. "
        "Remove it, or run 'vitune analyze' again."
    )


def _width(content: bytes) -> float | None:
    """The width of an SVG that is given in points, as CSS pixels."""
    found = re.search(rb'<svg[^>]* width="([0-9.]{1,8})pt"', content[:2000])
    return float(found[1]) * 4 / 3 if found else None
