"""Open a labelled split for a trained run, score it and keep the result in the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitune.data import CacheSettings, load_labelled
from vitune.errors import VituneError
from vitune.files import write_atomic
from vitune.inference.evaluate import evaluate
from vitune.inference.exit_scores import Rival, score_exits
from vitune.inference.load import LoadedRun, load_run
from vitune.report import write_report
from vitune.runs import RunFolder

Progress = Callable[[int, int], None]


def evaluate_run(
    path: str | Path,
    data: str | None = None,
    *,
    split: str | None = None,
    skip_bad_images: bool = False,
    force: bool = False,
    device: str = "auto",
    exits: str = "auto",
    beside: Sequence[str | Path] = (),
    on_read: Progress | None = None,
    on_score: Progress | None = None,
) -> dict[str, Any]:
    """Score the run at `path` on one split and write evaluation/NAME.json and report.html.

    Args:
        path: a run folder; an adapter or merged model is scored too, but keeps no result.
        data: labelled images; None means the data of the run.
        split: None means test, or everything where the data has no splits.
        exits: "auto" lets images leave early where the run can, "full" never does.
        beside: other runs, a smaller backbone's say, to score and time on the same images; only
            for a run with exits.
        on_read, on_score: called with (images done, images in all).

    Returns:
        What `evaluate` gives, with "skipped_images"; of a run with exits, "exits" as
        `score_exits` gives it.

    Raises:
        AdapterError, BackboneError: the run cannot be loaded.
        DataError: images or labels that cannot be used.
    """
    run = load_run(path, force=force, device=device, exits=exits)
    if beside and run.exits is None:
        raise VituneError(
            f"--beside: got {str(beside[0])!r} for a run without exits, expected one with exits. "
            "To compare runs use vitune compare."
        )
    folder = RunFolder(Path(path))
    is_run = folder.config.is_file()
    if data is None:
        if not is_run:
            raise VituneError("--data: got nothing, expected images: only a run knows its own.")
        data = str(folder.read_config()["data"])
    settings = CacheSettings(skip_bad_images=skip_bad_images, on_progress=on_read)
    images, skipped = load_labelled(
        data, run.card.preprocessing, classes=run.classes, split=split, settings=settings
    )
    result = evaluate(run, images, data=data, on_progress=on_score)
    if run.exits is not None:
        rivals = [_rival(other, run, data, split, settings) for other in beside]
        result["exits"] = score_exits(run, images, rivals)
    result |= {"name": evaluation_name(data, images.name), "skipped_images": len(skipped)}
    if is_run:
        write_atomic(folder.evaluations / f"{result['name']}.json", json.dumps(result))
        write_report(folder.path)
    return result


def _rival(
    path: str | Path, run: LoadedRun, data: str, split: str | None, settings: CacheSettings
) -> Rival:
    """Another run with the same images at its own input size."""
    other = load_run(path, device=str(run.device), exits="full")
    if set(other.classes) != set(run.classes):
        raise VituneError(
            f"--beside: got {str(path)!r} with classes {other.classes[:3]!r} ..., expected those "
            f"of the run, {run.classes[:3]!r} ..."
        )
    images, _ = load_labelled(
        data, other.card.preprocessing, classes=other.classes, split=split, settings=settings
    )
    return Rival(Path(path).name, other, images)


def evaluation_name(data: str, split: str) -> str:
    """A file name for the evaluation of `data`: letters, digits, dots and dashes."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", data).strip("-.") or "data"
    return stem if stem.endswith(split) else f"{stem}-{split}"
