"""Optuna's part of a search: proposes trials, stops poor ones early, keeps a journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitune.extras import import_extra

REDUCTION = 3
"""One in this many trials climbs to the next rung."""

WARM_START = (1.0, 0.3, 3.0)
"""Multiples of the rule's rate that every method is tried with first."""


def halving_study(journal: Path, methods: Sequence[str], *, first_rung: int, seed: int) -> Any:
    """The Optuna study in `journal`; a new one starts with the queued warm start.

    A trial that was interrupted by a kill is queued again.

    Raises:
        VituneError: Optuna is not installed.
    """
    optuna = _optuna()
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal))
    )
    study = optuna.create_study(
        study_name="tune",
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * len(methods)),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=first_rung, reduction_factor=REDUCTION
        ),
    )
    if not study.trials:
        for factor in WARM_START:
            for method in methods:
                study.enqueue_trial({"method": method, "factor": factor})
    running = optuna.trial.TrialState.RUNNING
    for trial in study.get_trials(deepcopy=False, states=(running,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    return study


def end_trial(study: Any, trial: Any, value: float | None) -> None:
    """Tell the study the last value of a trial; None if it ran out of time before its first."""
    failed = _optuna().trial.TrialState.FAIL
    study.tell(trial, value, state=None if value is not None else failed)


def _optuna() -> Any:
    optuna = import_extra("--tune", "search", "optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
