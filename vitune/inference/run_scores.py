"""Open a labelled split for a trained run, score it and store the result in the run folder."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from vitune.data import (
    TOLD,
    CacheSettings,
    absolute_source,
    load_labelled,
    open_source,
    with_groups,
)
from vitune.errors import VituneError
from vitune.files import write_atomic
from vitune.inference.evaluate import evaluate
from vitune.inference.exit_scores import Rival, score_exits
from vitune.inference.load import LoadedRun, load_run
from vitune.inference.own_images import home_of
from vitune.inference.seen import Chooser, used_images, warn_of_other_labels
from vitune.report import check_readable, write_report
from vitune.runs import RunFolder
from vitune.seals import sealed

Progress = Callable[[int, int], None]


def evaluate_run(
    path: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    groups: str | None = None,
    skip_bad_images: bool = False,
    force: bool = False,
    device: str = "auto",
    including_training: bool = False,
    exits: str = "auto",
    beside: str | Path | Sequence[str | Path] = (),
    on_read: Progress | None = None,
    on_score: Progress | None = None,
) -> dict[str, Any]:
    """Score the run at `path` on one split and write evaluation/NAME.json and report.html.

    Images used to train or validate the run are recognised by content, left out and counted; if
    there are no others, the validation images are scored and the result says so.

    Args:
        path: a run folder; an adapter or merged model is scored too, but stores no result.
        data: labelled images; None means the data of the run, or of the run in whose folder an
            adapter lies, in the same groups and without the unreadable ones if the run skipped
            them.
        split: None means test, or everything if the data has no splits.
        groups: regular expression that finds in a path what an image shows; images of one group
            are not independent, so intervals are wider.
        including_training: also score the run's training images; the result says so.
        exits: "auto" lets images leave early if the run supports it, "full" never does.
        beside: another run, for example with a smaller backbone, or several, to score and time on
            the same images; only for a run with exits.
        on_read, on_score: called with (images done, total images).

    Returns:
        The result of `evaluate`, with "skipped_images" and the first of their names in "skipped",
        and "seen" and "left_out": how many training and validation images were scored and left out;
        None if unknown (for a merged model). For a run with exits also "exits", the result of
        `score_exits`.

    Raises:
        AdapterError, BackboneError: the run cannot be loaded.
        DataError: images or labels that cannot be used, or only training images of the run.
    """
    beside = [beside] if isinstance(beside, str | Path) else beside
    run = load_run(path, force=force, device=device, exits=exits)
    if beside and run.exits is None:
        raise VituneError(
            f"--beside: got {str(beside[0])!r} for a run without exits, expected one with exits. "
            "To compare methods, use vitune compare."
        )
    folder = RunFolder(Path(path))
    is_run = folder.config.is_file()
    if data is None:
        home = home_of(folder)
        if home is None:
            raise VituneError("--data: got nothing, expected images: only a run records its data.")
        data = home.read_data()
        own = home.read_config()
        skip_bad_images = skip_bad_images or bool(own.get("skip_bad_images"))
        groups = groups or own.get("groups")
    data = str(data)
    if is_run:
        check_readable(folder.path)  # before any work: the score goes into its report
        folder.read_summary()
    used = used_images(path)
    choose = Chooser(used, including_training, data)
    settings = CacheSettings(skip_bad_images=skip_bad_images, on_progress=on_read)
    listed = open_source(data)
    images, skipped = load_labelled(
        listed if groups is None else with_groups(listed, groups),
        run.card.preprocessing,
        classes=run.classes,
        split=split,
        settings=settings,
        choose=choose,
    )
    warn_of_other_labels(used, images)
    data = absolute_source(data)
    result = evaluate(run, images, data=data, on_progress=on_score)
    if run.exits is not None:
        asked = Asked(data, split, settings, Chooser(used_images(path), including_training, data))
        result["exits"] = score_exits(run, images, [_rival(other, run, asked) for other in beside])
    result |= {"skipped_images": len(skipped), "skipped": list(skipped[:TOLD]), **choose.marks}
    result["name"] = evaluation_name(data, choose.name(images.name))
    if is_run:
        file = _free_file(folder.evaluations, result["name"], data)
        result |= {"name": file.stem, "weights": folder.weights_digest()}
        _store(file, result, folder)
    return result


def _store(file: Path, result: dict[str, Any], folder: RunFolder) -> None:
    """Keep a result in its run; where nothing can be written, the score is still worth having."""
    try:
        write_atomic(file, json.dumps(sealed(result)))
        write_report(folder.path)
    except OSError as error:
        warnings.warn(
            f"{error.filename or file}: {error.strerror or error}. The score is not in the run's "
            "report.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Asked:
    """Which images were requested, so that another run can be given the same."""

    data: str
    split: str | None
    settings: CacheSettings
    choose: Chooser


def _rival(path: str | Path, run: LoadedRun, asked: Asked) -> Rival:
    """Another run with the same images at its own input size."""
    other = load_run(path, device=str(run.device), exits="full")
    if set(other.classes) != set(run.classes):
        raise VituneError(
            f"--beside: got {str(path)!r} with classes {other.classes[:3]!r} ..., expected those "
            f"of the run, {run.classes[:3]!r} ..."
        )
    images, _ = load_labelled(
        asked.data,
        other.card.preprocessing,
        classes=other.classes,
        split=asked.split,
        settings=asked.settings,
        choose=asked.choose,
    )
    return Rival(Path(path).name, other, images)


def evaluation_name(data: str, split: str) -> str:
    """A file name for the evaluation of `data`: letters, digits, dots and dashes."""
    short = data.rpartition("/")[2] if "/" in data else data
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", short).strip("-.") or "data"
    return stem if stem.endswith(split) else f"{stem}-{split}"


def _free_file(folder: Path, name: str, data: str) -> Path:
    """Where to store an evaluation: never over that of other data with the same name."""
    for number in count(1):
        file = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not file.is_file() or _data_of(file) == data:
            break
    return file


def _data_of(file: Path) -> object:
    """The images that a stored evaluation scored; None if it is damaged."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return values.get("data") if isinstance(values, dict) else None
