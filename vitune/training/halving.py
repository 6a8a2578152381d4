"""Optuna's part of a search: proposes trials, stops poor ones early, keeps a journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitune.errors import AdapterError, one_line
from vitune.extras import import_extra

REDUCTION = 3
"""One in this many trials climbs to the next rung."""

WARM_START = (1.0, 0.3, 3.0)
"""Multiples of the rule's rate that every method is tried with first."""


def halving_study(journal: Path, methods: Sequence[str], *, first_rung: int, seed: int) -> Any:
    """The Optuna study in `journal`; a new one starts with the queued warm start.

    A trial that was interrupted by a kill comes next.

    Raises:
        VituneError: Optuna is not installed, or the journal is damaged.
    """
    optuna = _optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2 * len(methods))
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=first_rung, reduction_factor=REDUCTION
    )
    try:
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(journal))
        )
        study = optuna.create_study(
            study_name="tune",
            storage=storage,
            load_if_exists=True,
            direction="minimize",
            sampler=sampler,
            pruner=pruner,
        )
    except OSError:
        raise
    except Exception as error:  # Optuna raises almost anything on a damaged journal
        raise AdapterError(
            f"{journal}: got a damaged file ({one_line(error)}), expected the journal that the "
            "search wrote. Remove it: finished runs are kept elsewhere, and the search goes on."
        ) from None
    if not study.trials:
        for factor in WARM_START:
            for method in methods:
                study.enqueue_trial({"method": method, "factor": factor})
    _interrupted_first(study, optuna.trial.TrialState)
    return study


def _interrupted_first(study: Any, states: Any) -> None:
    """Queue a trial that was interrupted before those that wait.

    Optuna takes trials in the order of their numbers, so those that wait are queued again.
    """
    interrupted = study.get_trials(deepcopy=False, states=(states.RUNNING,))
    waiting = study.get_trials(deepcopy=False, states=(states.WAITING,))
    for trial in interrupted:
        study.tell(trial.number, state=states.FAIL)
    again = [trial.params for trial in interrupted if trial.params]
    if not again:
        return
    for params in [*again, *(trial.system_attrs["fixed_params"] for trial in waiting)]:
        study.enqueue_trial(params)
    for _ in waiting:  # a kill before this leaves them twice; a run is not trained twice
        study.tell(study.ask(), state=states.FAIL)


def end_trial(study: Any, trial: Any, value: float | None) -> None:
    """Tell the study the last value of a trial; None if it ran out of time before its first."""
    failed = _optuna().trial.TrialState.FAIL
    study.tell(trial, value, state=None if value is not None else failed)


def _optuna() -> Any:
    optuna = import_extra("--tune", "search", "optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
