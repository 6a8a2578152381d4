"""The definition of a study: variants of methods on tasks, over settings and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vitune.bench.study.open_settings import EXTRA_SETTINGS, arguments_of, rate_of, require_free
from vitune.bench.study.open_settings import Setting as Setting
from vitune.bench.study.recipe import OfficialRecipe
from vitune.errors import VituneError, nearest
from vitune.methods import get_method
from vitune.training import STEPPING, TrainConfig, read_yaml

Keepable = Literal["adapters"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """A validated, immutable record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """The record from plain values.

        Raises:
            VituneError: an unknown key (the nearest is named) or a value that does not fit.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise VituneError(_explained(error, cls)) from None


class Task(Frozen):
    """One data source of a study.

    Args:
        name: its name in tables.
        data: what `open_source` takes.
        group: tasks of one group are averaged together; None is a task without a group.
        settings: training settings of this task for every variant.
        shots: training images per class, if it is one of several sizes of a data set.
        refit: whether final runs are trained on the source's own validation images too.
    """

    name: str
    data: str
    group: str | None = None
    shots: int | None = Field(None, ge=1)
    refit: bool = True
    settings: dict[str, Any] = Field(default_factory=dict)


class Variant(Frozen):
    """One method with its arguments, as a table shows it.

    Args:
        label: unique within the study.
        method: see 'vitune methods'.
        method_args: of the method.
        settings: training settings of this variant on every task.
        task_settings: further settings by task name; they override all but the grid.
        grid: settings that stage 1 tries; None takes the study's.
        recipe: deviations of the authors' script, see `OfficialRecipe`; only for as-published.
        task_recipe: further ones by task name.
    """

    label: str
    method: str
    method_args: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    task_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    task_recipe: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Range(Frozen):
    """Numbers from `low` to `high`, inclusive; `log` draws uniformly in the logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise VituneError(
                f"space: got a range of {self.low!r} to {self.high!r}, expected low < high"
                f"{' and low > 0' if self.log else ''}."
            )
        return self


def is_whole(name: str) -> bool:
    """Whether a setting is a whole number, so that a range gives whole numbers too."""
    field = TrainConfig.model_fields.get(name)
    return field is not None and field.annotation in (int, int | None)


def _typed(name: str, value: Any) -> Any:
    """The value as a run gets it: edges of a range are floats."""
    return int(value) if is_whole(name) and isinstance(value, float) else value


class Search(Frozen):
    """Stage 1 by Optuna instead of a grid.

    Args:
        sampler: "tpe" (tree-structured Parzen estimator) or "random".
        pruner: "asha" (asynchronous successive halving, Li et al. 2020) runs a trial first with few
            epochs and continues it, each time from scratch with `eta` times the epochs, only if it
            is among its rung's best 1/eta; "none" runs every trial at full length.
        num_trials: per variant and task.
        num_parallel: trials proposed at a time; it affects what the sampler knows, so it belongs to
            the study and not to the machine.
        eta: reduction factor of "asha".
        seed: of the sampler.
        space: by setting a Range (of whole numbers for a setting that is one), or a list of
            choices.
    """

    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "asha"] = "none"
    num_trials: int = Field(16, ge=1)
    num_parallel: int = Field(4, ge=1)
    eta: int = Field(3, ge=2)
    seed: int = Field(0, ge=0)
    space: dict[str, Range | tuple[Any, ...]] = Field(
        default={"lr_factor": Range(low=0.1, high=10.0, log=True)}, min_length=1
    )

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Epochs of a trial's runs, ascending, the last one `epochs`."""
        found = [epochs]
        while self.pruner == "asha" and found[0] // self.eta >= 1:
            found.insert(0, found[0] // self.eta)
        return tuple(found)

    def examples(self) -> tuple[dict[str, Any], ...]:
        """Settings that hold both edges of every range and every choice."""
        columns = {
            name: (values.low, values.high) if isinstance(values, Range) else tuple(values)
            for name, values in self.space.items()
        }
        return tuple(
            {n: _typed(n, column[min(row, len(column) - 1)]) for n, column in columns.items()}
            for row in range(max(map(len, columns.values())))
        )


class Study(Frozen):
    """Variants x tasks x settings x seeds, and how scores are computed.

    Precedence of settings, weakest first: the study's, the task's, the variant's, the variant's
    for the task, the grid's.

    Args:
        name: for tables and file names.
        variants: what is compared; labels are unique.
        tasks: the data; names are unique.
        backbone: what `load_backbone` takes.
        checkpoint: local weights of the backbone.
        image_size: pixels, other than the native size.
        epochs: of every run, both stages.
        settings: further TrainConfig values for every run.
        grid: settings stage 1 chooses from on validation; one entry needs no stage 1.
        search: proposes the settings of stage 1 instead of a grid.
        seeds: of the final runs, at least one; 3 or more give a meaningful spread.
        selection_seeds: of the runs of stage 1, whose validation accuracies are averaged.
        split_seed: determines the hold-out if the source has no validation split.
        val_fraction: of training, held out in that case.
        report_on: "test" refits on training and validation and opens the test split once per final
            run; "val" reports the validation split; "auto" is "test" if the source has one.
        retention: measure how much of the base the adapted network kept, on the reported images.
        keep: what to keep of every final run besides its scores and logits: "adapters".
        allow_overlap: score a split that shares images with training, with and without them,
            instead of refusing the task.
        watch: train final runs on training images alone and score validation after every epoch.
        protocol: "honest", or "as-published", which scores the test split every epoch.
        missing: tasks of the suite that the data root lacks, to be listed in every table.
        remarks: notes below every table.
    """

    name: str = "study"
    variants: tuple[Variant, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    backbone: str = "vitune/vit_micro_patch4_32"
    checkpoint: str | None = None
    image_size: int | None = Field(None, ge=8)
    epochs: int = Field(100, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1)
    search: Search | None = None
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    selection_seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    split_seed: int = Field(0, ge=0)
    val_fraction: float = Field(0.2, gt=0, lt=1)
    report_on: Literal["auto", "test", "val"] = "auto"
    retention: bool = False
    keep: tuple[Keepable, ...] = ()
    allow_overlap: bool = False
    watch: bool = False
    protocol: Literal["honest", "as-published"] = "honest"
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_unique("variants", [variant.label for variant in self.variants])
        _require_unique("tasks", [task.name for task in self.tasks])
        for name in ("seeds", "selection_seeds"):
            _require_unique(name, [str(seed) for seed in getattr(self, name)])
        if self.search is not None:
            _require_searchable(self)
        for variant in self.variants:
            for task in self.tasks:
                self.recipe_of(variant, task)
                for setting in self.tried(variant):
                    self.config(variant, task, setting, seed=0, refit=False)
        return self

    def grid_of(self, variant: Variant) -> tuple[Setting, ...]:
        """The settings that stage 1 tries for `variant`; a solved head has no rates to try."""
        grid = self.grid if variant.grid is None else variant.grid
        if not get_method(variant.method).solved:
            return grid
        unused = {*STEPPING, *EXTRA_SETTINGS}
        left = [{n: value for n, value in s.items() if n not in unused} for s in grid]
        return tuple(setting for place, setting in enumerate(left) if setting not in left[:place])

    def config(
        self, variant: Variant, task: Task, setting: Setting, *, seed: int, refit: bool
    ) -> TrainConfig:
        """The training configuration of one run.

        Raises:
            VituneError: a setting that is unknown, out of range or set by the protocol.
        """
        values: dict[str, Any] = {"epochs": self.epochs}
        of_task = variant.task_settings.get(task.name, {})
        for source in (self.settings, task.settings, variant.settings, of_task, setting):
            require_free(source)
            if "lr" in source:
                values.pop("lr_factor", None)
            values.update(source)
        method = get_method(variant.method)
        factor = values.pop("lr_factor", None)
        if factor is not None:
            values["lr"] = rate_of(factor, method.default_lr(self.backbone))
        if values.get("optimiser") == "sgd" and "lr" not in values:
            raise VituneError(
                f"setting: got optimiser 'sgd' without lr for {variant.label!r}, expected a "
                "learning rate: the methods' default rates are for AdamW."
            )
        arguments = arguments_of(method, variant.method_args, values.pop("method_args", {}))
        if method.solved:
            values = {name: value for name, value in values.items() if name not in STEPPING}
        else:
            values.setdefault("lr", method.default_lr(self.backbone))
            values.setdefault("weight_decay", method.default_weight_decay(self.backbone))
            values.setdefault("start", "plain")
            values.setdefault("augment", "none")
            values["select"] = "last"
        return TrainConfig.make(
            {
                **values,
                "method": variant.method,
                "method_args": arguments,
                "data": task.data,
                "backbone": self.backbone,
                "checkpoint": self.checkpoint,
                "image_size": self.image_size,
                "val_fraction": self.val_fraction,
                "seed": seed,
                "refit": refit,
            }
        )

    def tried(self, variant: Variant) -> tuple[Setting, ...]:
        """The settings of stage 1: the grid's, or those that bound a search."""
        return self.grid_of(variant) if self.search is None else self.search.examples()

    def epochs_of(self, variant: Variant, task: Task) -> int:
        """The epochs of a run, the longest of those tried; settings may change the study's."""
        configs = (
            self.config(variant, task, setting, seed=0, refit=False)
            for setting in self.tried(variant)
        )
        return max(config.epochs for config in configs)

    def recipe_of(self, variant: Variant, task: Task) -> dict[str, Any]:
        """Deviations of the as-published protocol for a cell; empty under the honest one.

        Raises:
            VituneError: an unknown deviation or a value out of range.
        """
        if self.protocol == "honest":
            return {}
        given = {**variant.recipe, **variant.task_recipe.get(task.name, {})}
        return OfficialRecipe.make(given).model_dump()

    def require_known_tasks(self) -> None:
        """Check that what variants say of single tasks is of tasks of this study.

        A preset may say more: it speaks of all tasks of its suite.

        Raises:
            VituneError: another task's name.
        """
        known = [*(task.name for task in self.tasks), *self.missing]
        for variant in self.variants:
            for part in ("task_settings", "task_recipe"):
                unknown = [name for name in getattr(variant, part) if name not in known]
                if unknown:
                    raise VituneError(
                        f"{part} of {variant.label!r}: got {unknown[0]!r}, expected a task of the "
                        f"study. {nearest(unknown[0], known)}"
                    )

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """The study in a YAML file.

        Raises:
            VituneError: no such file, not a YAML mapping, or what `make` refuses.
        """
        return cls.make(read_yaml(path, "study"))


def grid_of(**choices: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Every combination: grid_of(lr=[1e-3, 3e-3], weight_decay=[0.0]) has two settings."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _require_searchable(study: Study) -> None:
    """Check that a search has its own space and no grid."""
    assert study.search is not None
    if study.grid != ({},) or any(v.grid is not None for v in study.variants):
        raise VituneError("search: got a grid as well, expected only one of the two.")
    if "epochs" in study.search.space:
        raise VituneError("space: got 'epochs', expected none: rungs and refits set them.")
    for name, choices in study.search.space.items():
        if not isinstance(choices, Range) and not choices:
            raise VituneError(f"space: got no choices of {name!r}, expected 1 or more.")
        if isinstance(choices, Range) and is_whole(name):
            for end in (choices.low, choices.high):
                if not end.is_integer():
                    raise VituneError(f"space: got {end!r} for {name!r}, expected whole numbers.")


def _require_unique(what: str, names: Iterable[str]) -> None:
    given = list(names)
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise VituneError(f"{what}: got {twice[0]!r} twice, expected different ones.")


def _explained(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first thing pydantic found wrong."""
    unknown = [p for p in error.errors() if p["type"] == "extra_forbidden"]
    problem = (unknown or error.errors())[0]
    name = ".".join(step for step in map(str, problem["loc"]) if "[" not in step)
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown key. {nearest(name.rpartition('.')[2], _keys(model, problem))}"
    if problem["type"] == "missing":
        return f"{name}: got nothing, expected a value."
    reason = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem.get("ctx", {}).get("error"), VituneError):
        return reason
    return f"{name}: got {problem['input']!r}, {reason[0].lower()}{reason[1:]}."


def _keys(model: type[BaseModel], problem: Any) -> Iterable[str]:
    """The keys of the record in which an unknown one stood."""
    inner: dict[str, type[BaseModel]] = {"variants": Variant, "tasks": Task, "search": Search}
    if len(problem["loc"]) == 1:
        return model.model_fields
    if "space" in problem["loc"]:
        return Range.model_fields
    return inner.get(str(problem["loc"][0]), model).model_fields
