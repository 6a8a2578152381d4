"""One cell from its description to its result: train, retry with less memory, score."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitune.analysis import measure_retention
from vitune.bench.study.as_published import PublishedRecipe
from vitune.bench.study.cells import Cell, CellResult, Scores, blank_result
from vitune.bench.study.course import Course
from vitune.bench.study.kept import has_adapter, keep_adapter, write_logits
from vitune.bench.study.scores import score, unshared_with
from vitune.bench.study.store import Store
from vitune.bench.study.verifying import planned_data, planned_test, require_planned_weights
from vitune.bench.study.workbench import Workbench
from vitune.cards import AdapterCard
from vitune.data import Split, Splits, in_groups, normalise
from vitune.environment import Environment
from vitune.errors import DataError, TrainingError, VituneError, says_no_memory
from vitune.inference import LoadedRun
from vitune.training import Observer, TrainConfig
from vitune.training.fitting import fit
from vitune.training.keeping import Trained
from vitune.training.validating import inference_weights

RETENTION_IMAGES = 256
RETENTION_BATCH = 64

Train = Callable[..., Trained]


def complete(
    cell: Cell, store: Store, bench: Workbench, *, train: Train = fit
) -> tuple[CellResult, bool]:
    """The result of a cell, run now unless the store has it; never raises for a single cell.

    Returns:
        The result, and whether it already existed.
    """
    try:
        with store.claimed(cell.address):
            damaged = store.file(cell.address).exists()
            found = store.read(cell.address)
            if found is not None and serves(found, cell, store):
                return found.for_cell(cell), True
            result = run_cell(cell, bench, out=store.path, train=train)
            if damaged and found is None:
                note = "An earlier result file of this cell was damaged and is replaced."
                result = replace(result, notes=(*result.notes, note))
            store.write(result)
            return result, False
    except OSError as error:
        return blank_result(cell, "failed", error=f"{store.path}: {error}"), False


def serves(found: CellResult, cell: Cell, store: Store) -> bool:
    """Whether a stored result has everything that the cell requests."""
    if not found.is_settled or (cell.fresh and is_outdated(found)):
        return False
    wants_adapter = "adapters" in cell.keep and found.status == "done"
    return not wants_adapter or has_adapter(store.path, found)


def is_outdated(found: CellResult) -> bool:
    """Whether other versions or another kind of device made it."""
    on_gpu = torch.cuda.is_available() and found.config.get("device") != "cpu"
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    return found.versions != versions_here() or found.device_kind not in (None, device)


def versions_here() -> dict[str, str]:
    """Versions of vitune and the libraries, and the commit of vitune if known."""
    here = Environment.here()
    commit = {} if here.commit is None else {"vitune-source": here.commit[:12] + here.commit[40:]}
    return {**here.packages, **commit}


def run_cell(
    cell: Cell, bench: Workbench, *, out: Path | None = None, train: Train = fit
) -> CellResult:
    """Train and score one cell; errors become part of the result.

    Args:
        out: the study's folder, for logits and adapters; None keeps neither.
    """
    try:
        return _run(cell, bench, out, train)
    except TrainingError as error:
        return _ended(cell, "diverged", error)
    except (VituneError, OSError, MemoryError, RuntimeError) as error:
        return _ended(cell, "failed", error)


def _ended(cell: Cell, status: Any, error: BaseException) -> CellResult:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return blank_result(cell, status, error=reason, versions=versions_here(), finished=_now())


def _run(cell: Cell, bench: Workbench, out: Path | None, train: Train) -> CellResult:
    data = planned_data(cell, bench)
    splits = data.divided(refit=cell.config.refit)
    observer: Observer = Course()
    if cell.recipe:
        observer = PublishedRecipe.make(cell.recipe, planned_test(cell, bench, splits))
    trained, notes = train_within_memory(cell.config, splits, observer, train=train)
    summary = trained.summary
    require_planned_weights(cell, bench)
    found: dict[str, Any] = {}
    if cell.stage == "final":
        found = _reported(cell, bench, trained, splits, out)
    reported = summary.reported.val_accuracy
    return blank_result(
        cell,
        "done",
        val=reported if cell.stage == "select" else cell.val,
        published=observer.outcome() if isinstance(observer, PublishedRecipe) else None,
        seconds=summary.seconds,
        cpu_seconds=summary.cpu_seconds if (summary.device or "").startswith("cpu") else None,
        peak_mib=summary.peak_mib,
        counts={
            "trainable": summary.num_trainable,
            "without_head": summary.num_trainable_without_head,
            "head": summary.num_head,
            "total": summary.num_total,
        },
        sizes={
            "train": summary.num_train,
            "val": summary.num_val,
            "classes": summary.num_classes,
        },
        device=summary.device,
        precision=summary.precision,
        speed=summary.speed,
        versions=versions_here(),
        weight_files={path.name: value for path, value in bench.facts(cell.config).files.items()},
        notes=notes,
        curve=tuple(observer.curve) if isinstance(observer, Course) else (),
        finished=_now(),
        **found,
    )


def _reported(
    cell: Cell, bench: Workbench, trained: Trained, splits: Splits, out: Path | None
) -> dict[str, Any]:
    """Scores on the reported split and the other outputs of a final run, by field of the result."""
    if cell.scored_on == "test":
        split = planned_test(cell, bench, splits)
    else:
        assert splits.val is not None
        split = splits.val
    split = in_groups(split, cell.config.groups, cell.config.data)
    logits = image_logits(trained, split)
    alone = np.ones(len(split), bool)
    if cell.allow_overlap:
        alone = unshared_with(split, [s for s in (splits.train, splits.val) if s is not split])
    adapter = None
    if out is not None:
        write_logits(out, cell.address, logits, split)
        if "adapters" in cell.keep:
            adapter = keep_adapter(out, cell.address, trained, cell.config)
    return {
        "adapter": adapter,
        "scores": score(logits, split),
        "unshared": _scores_of_part(logits, split, alone),
        "retention": _retention(trained, split) if cell.retention else None,
    }


def _scores_of_part(logits: Tensor, split: Split, chosen: np.ndarray) -> Scores | None:
    """Scores of the chosen images; None if all are chosen."""
    if chosen.all():
        return None
    if not chosen.any():
        raise DataError(
            f"split {split.name!r}: got only images that are also in training, expected at least "
            "one other. Give the task a separate test split."
        )
    kept = np.flatnonzero(chosen)
    return score(logits[torch.from_numpy(kept)], split.subset(kept))


def train_within_memory(
    config: TrainConfig, splits: Splits, observer: Observer, *, train: Train = fit
) -> tuple[Trained, tuple[str, ...]]:
    """`fit`; if memory runs out, again with smaller batches of the same total.

    Returns:
        The trained model, and a sentence if the batch had to be divided.

    Raises:
        MemoryError, RuntimeError: out of memory even with one image per batch.
    """
    asked = config.batch_size
    while True:
        try:
            trained = train(config, splits=splits, observer=observer)
            break
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or config.batch_size == 1:
                raise
        config = with_smaller_batch(config)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if config.batch_size == asked:
        return trained, ()
    note = (
        f"Out of memory at batch size {asked}: run with {config.batch_size} and "
        f"{config.accumulation_steps} accumulation steps, the same effective batch."
    )
    return trained, (note,)


def with_smaller_batch(config: TrainConfig) -> TrainConfig:
    """The batch divided by its smallest prime factor (2 if even), accumulated as often."""
    factor = next(n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0)
    return config.model_copy(
        update={
            "batch_size": config.batch_size // factor,
            "accumulation_steps": config.accumulation_steps * factor,
        }
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or says_no_memory(error)


def image_logits(trained: Trained, split: Split) -> Tensor:
    """Logits of every image of `split` in order, with the weights that a run reports.

    Shapes: returns (b, c) float32 on the CPU.
    """
    card = AdapterCard(
        method="",
        method_args={},
        backbone=trained.backbone.name,
        backbone_args={},
        preprocessing=trained.backbone.preprocessing,
        classes=trained.classes,
    )
    with inference_weights(trained.model):
        return torch.cat(list(LoadedRun(Path(), card, trained.model, None).logits(split)))


def _retention(trained: Trained, split: Split) -> dict[str, Any]:
    """Mean and last block's CKA between base and adapted features, on some images of `split`."""
    device = next(trained.model.parameters()).device

    def batches() -> Iterator[Tensor]:
        images = split.subset(range(min(len(split), RETENTION_IMAGES))).images
        for start in range(0, len(images), RETENTION_BATCH):
            pixels = torch.from_numpy(images[start : start + RETENTION_BATCH]).permute(0, 3, 1, 2)
            yield normalise(pixels, trained.backbone.preprocessing, device=device)

    found = measure_retention(trained.model, batches(), max_images=RETENTION_IMAGES)
    values = [block.cka_debiased for block in found.blocks if block.cka_debiased is not None]
    return {
        "num_images": found.num_images,
        "cka_mean": sum(values) / len(values) if values else None,
        "cka_last": found.blocks[-1].cka_debiased,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
