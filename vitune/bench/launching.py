"""From the user's options to a study: a suite with methods or presets, under either protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from vitune.bench.presets import load_preset
from vitune.bench.study.plan import Study, Task, Variant, grid_of
from vitune.bench.suites.shots import with_shots
from vitune.bench.suites.suite_names import SUITES
from vitune.bench.suites.suites import SuiteTasks, suite_tasks
from vitune.data import spec_name
from vitune.errors import VituneError
from vitune.methods import get_method

LR_FACTORS = (0.3, 1.0, 3.0)
"""The rates stage 1 tries by default: multiples of each method's default."""

DEFAULT_EPOCHS = 100
SUITE_SETTINGS: dict[str, dict[str, Any]] = {"demo": {"epochs": 3, "batch_size": 16}}
"""Settings by suite that replace the usual ones: seven methods on the demo suite within an hour on
two cores. Small batches, because three epochs give few steps."""

LISTS = "lists"
FEWSHOT_DEFAULT = 16

Protocol = Literal["honest", "as-published"]


def suite_study(
    suite: str,
    methods: Sequence[str],
    out: str | Path,
    *,
    root: str | Path | None = None,
    only: Sequence[str] = (),
    allow_missing: bool = False,
    shots: Sequence[int] = (),
    epochs: int | None = None,
    lrs: Sequence[float] = (),
    search: str = "",
    trials: int = 16,
    tune: bool = True,
    seeds: int | Sequence[int] = 3,
    method_args: Mapping[str, Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    retention: bool = True,
    **values: Any,
) -> Study:
    """The honest study of several methods on a suite: `vitune bench run --suite S --methods A,B`.

    Args:
        suite, root, only, allow_missing: as `suite_tasks` takes them.
        shots: training images per class, several for a curve; empty takes every training image, and
            16 in the few-shot suite, which has its own lists.
        out: the study's folder; split tables are written below it.
        epochs: None takes SUITE_SETTINGS for the suite, else DEFAULT_EPOCHS.
        lrs: learning rates for stage 1; empty takes LR_FACTORS times each method's default.
        search: "tpe" or "asha" (TPE with successive halving) lets Optuna propose the rates
            instead, between the lowest and highest of `lrs`, else a tenth and ten times each
            method's default.
        trials: of a search, per method and task.
        tune: False runs every method at its default settings; nothing is chosen.
        seeds: how many (0, 1, ...), or which.
        method_args: arguments by method name.
        settings: further training settings for every run; they override SUITE_SETTINGS.
        values: further fields of Study (backbone, checkpoint, image_size, report_on, ...).

    Raises:
        VituneError: an error of the suite or study.
    """
    if not methods:
        raise VituneError("--methods: got none, expected at least one name.")
    found = _tasks(suite, root, Path(out) / LISTS, only, allow_missing, tuple(shots))
    arguments = dict(method_args or {})
    usual = {"epochs": DEFAULT_EPOCHS} | SUITE_SETTINGS.get(suite, {})
    suite_epochs = usual.pop("epochs")
    if not tune and (search or lrs):
        raise VituneError("--defaults: got it with --search or --lrs, expected neither.")
    if search:
        values["search"] = _search(search, trials, lrs)
    elif lrs:
        values["grid"] = grid_of(lr=list(lrs))
    grid_from_defaults = tune and not search and not lrs
    return Study.make(
        {
            "name": suite if suite in SUITES else spec_name(suite),
            "variants": [
                Variant(
                    label=name,
                    method=name,
                    method_args=dict(arguments.get(name, {})),
                    grid=_usual_rates(name, values) if grid_from_defaults else None,
                )
                for name in methods
            ],
            "tasks": found.tasks,
            "missing": found.missing,
            "epochs": suite_epochs if epochs is None else epochs,
            "settings": usual | dict(settings or {}),
            "seeds": seed_list(seeds),
            "retention": retention,
            **values,
        }
    )


def _tasks(
    suite: str,
    root: str | Path | None,
    lists: Path,
    only: Sequence[str],
    allow_missing: bool,
    shots: tuple[int, ...],
) -> SuiteTasks:
    """The suite's tasks, each once per number of shots."""
    if suite != "fewshot":
        found = suite_tasks(suite, root, lists=lists, only=only, allow_missing=allow_missing)
        return replace(found, tasks=with_shots(found.tasks, shots, lists)) if shots else found
    parts = [
        suite_tasks(suite, root, lists=lists, only=only, shots=number).tasks
        for number in shots or (FEWSHOT_DEFAULT,)
    ]
    several = len(parts) > 1 and len(parts[0]) > 1
    return SuiteTasks(
        tuple(
            task.model_copy(update={"group": f"{task.shots}-shot" if several else None})
            for tasks in parts
            for task in tasks
        )
    )


def preset_study(
    preset: str,
    out: str | Path,
    *,
    root: str | Path,
    protocol: Protocol = "honest",
    only: Sequence[str] = (),
    allow_missing: bool = False,
    epochs: int | None = None,
    seeds: int | Sequence[int] = 3,
    overrides: Mapping[str, Any] | None = None,
    tasks: Sequence[Task] = (),
    **values: Any,
) -> Study:
    """A published recipe on its suite: `vitune bench run --preset P --protocol honest`.

    Args:
        overrides: training settings that override the recipe's.
        tasks: use these instead of the suite's (a part of it, or the user's own data).
        values: further fields of Study (backbone, checkpoint, image_size, ...).

    Raises:
        VituneError: unknown preset, or an error of the suite or study.
    """
    recipe = load_preset(preset)
    missing: tuple[str, ...] = ()
    if not tasks:
        found = suite_tasks(
            recipe.suite, root, lists=Path(out) / LISTS, only=only, allow_missing=allow_missing
        )
        tasks, missing = found.tasks, found.missing
    if epochs is not None:
        values["epochs"] = epochs
    return recipe.study(
        tasks,
        name=preset,
        protocol=protocol,
        overrides=overrides,
        seeds=seed_list(seeds),
        missing=missing,
        **values,
    )


def _usual_rates(method: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """LR_FACTORS times the method's default, as numbers: later defaults change no study."""
    backbone = values.get("backbone", Study.model_fields["backbone"].default)
    default = get_method(method).default_lr(backbone)
    return grid_of(lr=[float(f"{factor * default:.3g}") for factor in LR_FACTORS])


def _search(name: str, trials: int, lrs: Sequence[float]) -> dict[str, Any]:
    """The search "tpe" or "asha", over rates between the given ones if there are any."""
    pruners = {"tpe": "none", "asha": "asha"}
    if name not in pruners:
        raise VituneError(f"--search: got {name!r}, expected tpe or asha.")
    found: dict[str, Any] = {"pruner": pruners[name], "num_trials": trials}
    if lrs:
        found["space"] = {"lr": {"low": min(lrs), "high": max(lrs), "log": True}}
    return found


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds 0, 1, ... for a number, or the given ones.

    Raises:
        VituneError: a number below 1, or no whole number.
    """
    if isinstance(seeds, Iterable):
        return tuple(int(seed) if isinstance(seed, Integral) else seed for seed in seeds)
    if not isinstance(seeds, Integral) or seeds < 1:
        raise VituneError(f"--seeds: got {seeds!r}, expected 1 or more.")
    return tuple(range(int(seeds)))
