"""Stage 1 by Optuna: TPE proposes settings, ASHA decides which are worth more epochs.

Each rung of a trial is a separate cell, trained from scratch with that rung's epochs. So every cell
is a function of its configuration alone: it runs on any executor and is found again by its address.
A search keeps no state except its cells. It always runs from its first trial: the sampler is seeded
and existing results are reused, so a search that was killed proposes the same trials, in the same
order, as one that was not, and ends with the same setting.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitune.bench.study.cell_planner import Planner
from vitune.bench.study.cells import Cell, CellResult
from vitune.bench.study.choosing import Choice, best_of
from vitune.bench.study.plan import Range, Search, Task, Variant, is_whole
from vitune.extras import import_extra

LOG = logging.getLogger(__name__)

STORAGE = "search.db"
"""SQLite file in the study's folder; `optuna-dashboard sqlite:///OUT/search.db` shows it. It is
written for people: no search reads it."""


@dataclass(frozen=True)
class _Live:
    """A trial climbing the rungs."""

    trial: Any
    rung: int = 0


class OptunaSearch:
    """The search of one variant on one task; see `Searcher`.

    Args:
        folder: of the study; trials that have ended are copied into its `search.db`.

    Raises:
        VituneError: Optuna is not installed.
    """

    def __init__(self, planner: Planner, variant: Variant, task: Task, folder: Path) -> None:
        assert planner.study.search is not None
        self.planner, self.variant, self.task = planner, variant, task
        self.spec: Search = planner.study.search
        self.rungs = self.spec.rungs(planner.study.epochs_of(variant, task))
        self.live: list[_Live] = []
        self.ended: list[Any] = []
        self.optuna = _optuna()
        self.trials = self._new_study()
        self.folder = folder
        self.copied: Any = None
        self.num_copied = 0

    def ask(self) -> list[Cell]:
        """The next rung of the running trials, or new trials if none is left."""
        if not self.live:
            left = self.spec.num_trials - len(self.ended)
            space = self._distributions()
            self.live = [
                _Live(self.trials.ask(space)) for _ in range(min(self.spec.num_parallel, left))
            ]
        settings = [self._setting(live) for live in self.live]
        return self.planner.cells_of(self.variant, self.task, settings)

    def tell(self, results: Sequence[CellResult]) -> None:
        """Report the results of the round's trials; each ends, is pruned or climbs a rung."""
        num_seeds = len(self.planner.study.selection_seeds)
        states = self.optuna.trial.TrialState
        climbing = []
        for index, live in enumerate(self.live):
            own = results[index * num_seeds : (index + 1) * num_seeds]
            values = [result.val for result in own if result.val is not None]
            if len(values) < num_seeds:
                self._end(live, state=states.FAIL)
                continue
            mean = sum(values) / num_seeds
            live.trial.report(mean, step=self.rungs[live.rung])
            if live.rung == len(self.rungs) - 1:
                self._end(live, values=mean)
            elif live.trial.should_prune():
                self._end(live, state=states.PRUNED)
            else:
                climbing.append(_Live(live.trial, live.rung + 1))
        self.live = climbing
        self._copy()

    def choice(self) -> Choice | None:
        """The best trial that ran to the end."""
        tried = [
            (dict(trial.params), trial.value if trial.state.name == "COMPLETE" else None)
            for trial in sorted(self.ended, key=lambda trial: trial.number)
        ]
        return best_of(self.planner.study, self.variant, self.task, tried)

    def _setting(self, live: _Live) -> dict[str, Any]:
        """The trial's proposal, with its rung's epochs unless that is the full length."""
        is_last = live.rung == len(self.rungs) - 1
        return live.trial.params | ({} if is_last else {"epochs": self.rungs[live.rung]})

    def _end(self, live: _Live, **outcome: Any) -> None:
        self.ended.append(self.trials.tell(live.trial, **outcome))

    def _distributions(self) -> dict[str, Any]:
        known = self.optuna.distributions
        return {
            name: known.CategoricalDistribution(list(given))
            if not isinstance(given, Range)
            else known.IntDistribution(int(given.low), int(given.high), log=given.log)
            if is_whole(name)
            else known.FloatDistribution(given.low, given.high, log=given.log)
            for name, given in self.spec.space.items()
        }

    def _new_study(self) -> Any:
        """Optuna's study, in memory; nothing in it depends on time or an earlier process."""
        optuna = self.optuna
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        pruner = (
            optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.rungs[0], reduction_factor=self.spec.eta
            )
            if self.spec.pruner == "asha"
            else optuna.pruners.NopPruner()
        )
        sampler = samplers[self.spec.sampler](seed=self.spec.seed)
        return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)

    def _copy(self) -> None:
        """Add the trials that have ended and that `search.db` lacks."""
        try:
            if self.copied is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                storage = f"sqlite:///{(self.folder / STORAGE).resolve()}"
                self.copied = self.optuna.create_study(
                    study_name=self._name(),
                    storage=storage,
                    direction="maximize",
                    load_if_exists=True,
                )
                self.num_copied = len(self.copied.trials)
            self.copied.add_trials(self.ended[self.num_copied :])
            self.num_copied = max(self.num_copied, len(self.ended))
        except (OSError, self.optuna.exceptions.OptunaError) as error:
            LOG.warning("%s: %s The search goes on without it.", self.folder / STORAGE, error)

    def _name(self) -> str:
        """Variant and task for display, and a hash of everything that affects a trial's result."""
        (example,) = self.planner.cells_of(self.variant, self.task, [self.spec.examples()[0]])[:1]
        parts = {
            "search": self.spec.model_dump(mode="json", exclude={"num_trials"}),
            "cell": example.address,
            "seeds": self.planner.study.selection_seeds,
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.variant.label} on {self.task.name} ({digest})"


def _optuna() -> Any:
    optuna = import_extra("search", "search", "optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
