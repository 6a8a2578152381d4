"""From a study to its cells, each with the hashes of its data and weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from vitune.bench.study.cells import Cell, CellResult, Status
from vitune.bench.study.choosing import Choice, needs_selection, num_selection_cells
from vitune.bench.study.plan import Setting, Study, Task, Variant
from vitune.bench.study.workbench import Workbench
from vitune.data import Splits, open_source
from vitune.errors import DataError
from vitune.training import TrainConfig
from vitune.training.settling import with_fitting_batch


class Planner:
    """Turns a study into cells; decodes training and validation images to hash them.

    Args:
        fresh: repeat runs made by other versions or on another device.
    """

    def __init__(self, study: Study, bench: Workbench, *, fresh: bool = False) -> None:
        self.study, self.bench, self.fresh = study, bench, fresh

    def num_cells(self) -> int:
        """Cells of both stages if every variant finds a setting on every task."""
        study = self.study
        pairs = [(variant, task) for variant in study.variants for task in study.tasks]
        searched = sum(num_selection_cells(study, variant, task) for variant, task in pairs)
        return searched + len(pairs) * len(study.seeds)

    def scored_on(self, task: Task) -> Literal["val", "test"]:
        """The split on which the task's figures are computed.

        Raises:
            DataError: the test split is requested and the source has none.
        """
        has_test = "test" in open_source(task.data).splits
        if self.study.report_on == "test" and not has_test:
            raise DataError(
                f"task {task.name!r}: got {task.data!r} without a test split, expected one. "
                "Report on validation instead."
            )
        return "test" if has_test and self.study.report_on != "val" else "val"

    def check(self, task: Task) -> None:
        """Check, without training, that the task can be run from start to test split.

        Raises:
            DataError: files that are missing or broken, or images shared by two splits.
        """
        self.scored_on(task)
        variant = self.study.variants[0]
        config = self.study.config(variant, task, self._example(variant), seed=0, refit=False)
        self.bench.check(config, allow_overlap=self.study.allow_overlap)

    def selection_cells(self, variant: Variant, task: Task) -> list[Cell]:
        """Stage 1: every setting and selection seed; none if there is only one setting."""
        if not needs_selection(self.study, variant):
            return []
        return self.cells_of(variant, task, self.study.grid_of(variant))

    def cells_of(self, variant: Variant, task: Task, settings: Iterable[Setting]) -> list[Cell]:
        """Cells of stage 1 for the given settings, each with every selection seed."""
        return [
            self._cell(variant, task, setting, seed, "select", "val")
            for setting in settings
            for seed in self.study.selection_seeds
        ]

    def final_cells(self, variant: Variant, task: Task, choice: Choice) -> list[Cell]:
        """Stages 2 and 3: the chosen setting with every seed."""
        scored_on = self.scored_on(task)
        return [
            self._cell(variant, task, choice.setting, seed, "final", scored_on, choice.val)
            for seed in self.study.seeds
        ]

    def absent_results(
        self, variant: Variant, task: Task, status: Status, error: str
    ) -> list[CellResult]:
        """Placeholder results for final runs that cannot be made, one per seed."""
        study = self.study
        try:
            scored_on = self.scored_on(task)
        except DataError:
            scored_on = "val" if study.report_on == "val" else "test"
        setting = self._example(variant)
        configs = [
            study.config(variant, task, setting, seed=seed, refit=False) for seed in study.seeds
        ]
        return [
            CellResult(
                address="",
                stage="final",
                label=variant.label,
                task=task.name,
                group=task.group,
                protocol=study.protocol,
                config=config.model_dump(mode="json"),
                setting={},
                seed=config.seed,
                scored_on=scored_on,
                split_hashes={},
                fingerprint="",
                status=status,
                error=error,
            )
            for config in configs
        ]

    def _example(self, variant: Variant) -> Setting:
        return self.study.tried(variant)[0]

    def _cell(
        self,
        variant: Variant,
        task: Task,
        setting: Setting,
        seed: int,
        stage: Any,
        scored_on: Any,
        val: float | None = None,
    ) -> Cell:
        study = self.study
        config = study.config(variant, task, setting, seed=seed, refit=False)
        data = self.bench.task(config, study.split_seed, allow_overlap=study.allow_overlap)
        recipe = study.recipe_of(variant, task) if stage == "final" else {}
        joined = recipe.get("train_on") != "train" and data.refits(task.refit)
        refit = scored_on == "test" and joined and not study.watch
        facts = self.bench.facts(config)
        epochs = config.epochs + recipe.get("cooldown_epochs", 0)
        config = _with_usual_batch(config, data.divided(refit=refit))
        return Cell(
            stage=stage,
            label=variant.label,
            task=task.name,
            group=task.group,
            config=config.model_copy(update={"epochs": epochs, "refit": refit}),
            setting=dict(setting),
            scored_on=scored_on,
            split_hashes=data.hashes(refit=refit, scored_on=scored_on),
            fingerprint=facts.fingerprint,
            identity=facts.identity,
            source=data.source,
            split_seed=study.split_seed,
            val=val,
            retention=study.retention and stage == "final",
            recipe=recipe,
            allow_overlap=study.allow_overlap,
            keep=study.keep if stage == "final" else (),
            fresh=self.fresh,
        )


def _with_usual_batch(config: TrainConfig, splits: Splits) -> TrainConfig:
    """Fit the default batch to few images; a requested one is left for the run to refuse."""
    if "batch_size" in config.model_fields_set:
        return config
    assert splits.train is not None
    return with_fitting_batch(config, len(splits.train))
