"""One cell from its description to its result: train, retry with less memory, score."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitune.analysis import measure_retention
from vitune.bench.as_published import PublishedRecipe
from vitune.bench.cells import Cell, CellResult, Scores, blank_result
from vitune.bench.scores import score
from vitune.bench.store import Store
from vitune.bench.workbench import Workbench
from vitune.cards import AdapterCard
from vitune.data import Split, Splits, normalise
from vitune.environment import installed_versions
from vitune.errors import TrainingError, VituneError
from vitune.inference import LoadedRun
from vitune.training import Observer, TrainConfig
from vitune.training.fitting import Trained, fit
from vitune.training.loop import inference_weights

RETENTION_IMAGES = 256
RETENTION_BATCH = 64

Train = Callable[..., Trained]


def complete(
    cell: Cell, store: Store, bench: Workbench, *, train: Train = fit
) -> tuple[CellResult, bool]:
    """The settled result of a cell, run now unless the store has it; never raises for one cell.

    Returns:
        The result, and whether it was there already.
    """
    try:
        with store.claimed(cell.address):
            damaged = store.file(cell.address).exists()
            found = store.read(cell.address)
            if found is not None and found.is_settled:
                return found.for_cell(cell), True
            result = run_cell(cell, bench, train=train)
            if damaged and found is None:
                note = "An earlier result file of this cell was damaged and is replaced."
                result = replace(result, notes=(*result.notes, note))
            store.write(result)
            return result, False
    except OSError as error:
        return blank_result(cell, "failed", error=f"{store.path}: {error}"), False


def run_cell(cell: Cell, bench: Workbench, *, train: Train = fit) -> CellResult:
    """Train and score one cell; what goes wrong becomes part of the result."""
    try:
        return _run(cell, bench, train)
    except TrainingError as error:
        return _ended(cell, "diverged", error)
    except (VituneError, OSError, MemoryError, RuntimeError) as error:
        return _ended(cell, "failed", error)


def _ended(cell: Cell, status: Any, error: BaseException) -> CellResult:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return blank_result(cell, status, error=reason, versions=installed_versions(), finished=_now())


def _run(cell: Cell, bench: Workbench, train: Train) -> CellResult:
    data = bench.task(cell.config, cell.split_seed)
    splits = data.refit if cell.config.refit else data.selection
    observer: Observer = Observer()
    if cell.recipe:
        observer = PublishedRecipe.make(cell.recipe, bench.open_test(cell.config, splits.classes))
    trained, notes = train_within_memory(cell.config, splits, observer, train=train)
    summary = trained.summary
    scores, kept = None, None
    if cell.stage == "final":
        if cell.scored_on == "test":
            split = bench.open_test(cell.config, splits.classes)
        else:
            assert splits.val is not None
            split = splits.val
        scores = scored(trained, cell, split)
        kept = _retention(trained, split) if cell.retention else None
    reported = summary["reported"]["val_accuracy"]
    return blank_result(
        cell,
        "done",
        val=reported if cell.stage == "select" else cell.val,
        scores=scores,
        retention=kept,
        published=observer.outcome() if isinstance(observer, PublishedRecipe) else None,
        seconds=summary["seconds"],
        cpu_seconds=summary.get("cpu_seconds") if summary["device"].startswith("cpu") else None,
        peak_mib=summary["peak_mib"],
        counts={
            "trainable": summary["num_trainable"],
            "without_head": summary["num_trainable_without_head"],
            "head": summary["num_head"],
            "total": summary["num_total"],
        },
        sizes={
            "train": summary["num_train"],
            "val": summary["num_val"],
            "classes": summary["num_classes"],
        },
        device=summary["device"],
        precision=summary["precision"],
        versions=summary["versions"],
        notes=notes,
        finished=_now(),
    )


def train_within_memory(
    config: TrainConfig, splits: Splits, observer: Observer, *, train: Train = fit
) -> tuple[Trained, tuple[str, ...]]:
    """`fit`, and where memory runs out again with smaller batches of the same total.

    Returns:
        The trained model, and a sentence if the batch had to be divided.

    Raises:
        MemoryError, RuntimeError: no memory even with one image a batch.
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
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def scored(trained: Trained, cell: Cell, split: Split) -> Scores:
    """Scores of the trained model on `split`."""
    card = AdapterCard(
        method=cell.config.method,
        method_args=cell.config.method_args,
        backbone=trained.backbone.name,
        backbone_args={},
        preprocessing=trained.backbone.preprocessing,
        classes=trained.classes,
        fingerprint=cell.fingerprint,
    )
    with inference_weights(trained.model):
        return score(LoadedRun(Path(), card, trained.model, None), split)


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
