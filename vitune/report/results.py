"""What a run folder says about itself, as frozen records; absent files and values read as None."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.errors import VituneError
from vitune.report.evaluations import Evaluation, read_evaluations
from vitune.report.result_files import (
    Record,
    as_record,
    read_json,
    read_json_lines,
    read_yaml,
    visible_files,
)


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
class TrainedPart:
    """The trained parameters of one role: on how many modules, how many in all."""

    role: str
    num_modules: int | None
    num_parameters: int


@dataclass(frozen=True)
class Reported:
    """Which epoch's weights the run keeps ("last" or "best" on validation), and its score."""

    which: str | None
    epoch: int | None
    val_accuracy: float | None


@dataclass(frozen=True)
class Oddity:
    """What was odd about the images; `names` are the first of `num`."""

    text: str
    is_fault: bool
    num: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """summary.json: what was trained, how large it is, what it took."""

    method: str
    method_title: str | None
    source: str | None
    backbone: str | None
    num_trainable: int | None
    num_trainable_without_head: int | None
    num_head: int | None
    num_total: int | None
    adapter_bytes: int | None
    mergeable: bool | None
    reported: Reported
    seconds: float | None
    peak_mib: float | None
    device: str | None
    precision: str | None
    versions: dict[str, str]
    finished: str | None
    status: str | None
    num_train: int | None
    num_val: int | None
    num_classes: int | None
    held_out: str | None
    notice: str | None
    remarks: tuple[Oddity, ...]
    cores_of_others: float | None
    trained_parts: tuple[TrainedPart, ...]


@dataclass(frozen=True)
class Plot:
    """A picture of the analysis/ folder with its caption.

    Args:
        kind: its media type, image/svg+xml or image/png.
        width: as drawn, CSS pixels; None where the file does not say.
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
    summary: Summary | None
    evaluations: tuple[Evaluation, ...]
    spectrum: dict[str, Any]
    plots: tuple[Plot, ...]


def read_run(run_dir: str | Path) -> RunResults:
    """The results in a run folder; every file but one of config, metrics and summary may be absent.

    Raises:
        VituneError: no such folder, nothing of a run in it, or a file that is not what it should
            be (the text names the file, the line or the key).
    """
    folder = Path(run_dir)
    files = {name: folder / name for name in ("config.yaml", "metrics.jsonl", "summary.json")}
    if not any(path.is_file() for path in files.values()):
        raise VituneError(
            f"run folder: got {str(run_dir)!r}, expected a folder with one of {', '.join(files)}. "
            "Make one with: vitune train --data IMAGES --out RUN."
        )
    config, metrics, summary = files.values()
    spectrum = folder / "analysis" / "spectrum.json"
    return RunResults(
        folder=folder,
        config=read_yaml(config, str(config)) if config.is_file() else {},
        epochs=_epochs(metrics) if metrics.is_file() else (),
        summary=_summary(summary) if summary.is_file() else None,
        evaluations=read_evaluations(folder / "evaluation"),
        spectrum=_mapping(spectrum) if spectrum.is_file() else {},
        plots=_plots(folder / "analysis"),
    )


def _mapping(path: Path) -> dict[str, Any]:
    return as_record(read_json(path, str(path)), str(path)).values


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """The epochs in order; of an epoch that a resumed run did again, the later line counts."""
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


def _summary(path: Path) -> Summary:
    record = as_record(read_json(path, str(path)), str(path))
    record.needed("method")
    reported = as_record(record.mapping("reported"), f"{path}: reported")
    return Summary(
        method=record.text("method") or "",
        reported=Reported(
            which=reported.text("which"),
            epoch=reported.whole("epoch"),
            val_accuracy=reported.share("val_accuracy"),
        ),
        mergeable=record.flag("mergeable"),
        seconds=record.number("seconds"),
        peak_mib=record.number("peak_mib"),
        versions={str(name): str(version) for name, version in record.mapping("versions").items()},
        notice=record.text("notice"),
        remarks=_oddities(record),
        cores_of_others=record.number("cores_of_others"),
        trained_parts=tuple(_trained_part(part) for part in record.records("trained_parts")),
        **{key: record.text(key) for key in _SUMMARY_TEXTS},  # type: ignore[arg-type]
        **{key: record.whole(key) for key in _SUMMARY_COUNTS},  # type: ignore[arg-type]
    )


_SUMMARY_TEXTS = (
    "method_title", "source", "backbone", "device", "precision", "finished", "status", "held_out",
)  # fmt: skip
_SUMMARY_COUNTS = (
    "num_trainable", "num_trainable_without_head", "num_head", "num_total", "adapter_bytes",
    "num_train", "num_val", "num_classes",
)  # fmt: skip


def _oddities(record: Record) -> tuple[Oddity, ...]:
    """The remarks; of a run before there were any, how many images were skipped."""
    count = record.whole("skipped_images") or 0
    if count and "remarks" not in record.values:
        images = "image" if count == 1 else "images"
        return (Oddity(f"{count} unreadable {images} skipped", True, count, ()),)
    return tuple(
        Oddity(
            text=str(remark.needed("text")),
            is_fault=bool(remark.flag("is_fault")),
            num=remark.whole("num") or 0,
            names=tuple(str(name) for name in remark.listing("names")),
        )
        for remark in record.records("remarks")
    )


def _trained_part(part: Record) -> TrainedPart:
    return TrainedPart(
        role=str(part.needed("role")),
        num_modules=part.whole("count"),
        num_parameters=part.whole("parameters") or 0,
    )


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
