"""The best run within a time budget: methods, rates and epochs by successive halving, then a refit.

A trial is a method and a multiple of the rate that vitune's rule gives. It is trained for a few
epochs. If it is among the best third of the trials that got this far, it is trained again from the
start for three times as many. Trials are compared by validation cross-entropy at the best
temperature. Every finished rung is written to a journal, so a killed search continues where it
stopped.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitune.backbones import load_backbone
from vitune.data import Splits, UsedImages, open_source
from vitune.errors import BackboneError, OutOfMemoryError, TrainingError, VituneError, one_line
from vitune.ops import calibrated_losses
from vitune.runs import LOCK, RunFolder
from vitune.training.attempt_log import SEARCH_FILES, AttemptLog
from vitune.training.attempts import Attempt, choose
from vitune.training.augmenting import with_augmentation
from vitune.training.fitting import fit
from vitune.training.halving import end_trial, halving_study
from vitune.training.keeping import Trained, backbone_arguments
from vitune.training.observer import Observer
from vitune.training.probing import Probe, solve_probe
from vitune.training.settling import require_precision, with_absolute_paths, with_backbone
from vitune.training.splits_to_train import prepare_data
from vitune.training.starting import with_start
from vitune.training.train_config import TrainConfig
from vitune.training.tune_budget import LATER, epoch_s, first_epoch_s, refit_s
from vitune.training.tune_request import RUNGS, require_tunable, rungs_of, seconds_of

METHODS = ("rlrr", "lora", "ssf", "hta", "full")
"""Tried where the user names no method."""

FACTORS = (0.1, 10.0)
"""Smallest and largest multiple of the rule's rate."""

OF_ONE_RUN = (TrainingError, OutOfMemoryError, BackboneError)
"""Errors that may be a rate's or a method's own; the search goes on without the run."""

FEWEST_FAILURES = 3
"""If the first runs, at least so many and one of every method, all fail, so does the search."""


class Tuning:
    """One search in the run folder `out`; `run` returns the refitted result.

    Args:
        config: every setting except method, rate and epochs.
        methods: methods to try.
        budget_s: seconds for search and refit together; those of an earlier, killed part count.
        rungs: epochs of each rung.
        told: called with one line per finished rung.

    Raises:
        VituneError: there are no validation images, or the budget is too small for one run.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        budget_s: float,
        methods: Sequence[str] = METHODS,
        rungs: Sequence[int] = RUNGS,
        observer: Observer | None = None,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.out, self.budget_s = config, out, budget_s
        self._augments: dict[str | None, str] = {}  # by start
        self.methods, self.rungs, self.told = tuple(methods), tuple(rungs), told
        self.observer = observer or Observer()
        self.log = AttemptLog(out)
        self.started = time.monotonic()
        self.earlier_s = 0.0
        self.attempts: list[Attempt] = []
        self._groups: np.ndarray | None = None
        self._more_images = 1.0  # of a refit, relative to a trial

    @classmethod
    def within(
        cls,
        budget: str,
        config: TrainConfig,
        out: str | Path,
        *,
        observer: Observer | None = None,
        told: Callable[[str], None] = lambda line: None,
    ) -> Tuning:
        """A search over what `config` leaves open, for a time such as "20m".

        Raises:
            VituneError: `budget` is no duration, or `config` sets what the search decides.
        """
        require_tunable(config.model_dump(exclude_unset=True))
        require_precision(config)
        return cls._for(config, Path(out), seconds_of(budget), observer, told)

    @classmethod
    def _for(
        cls, config: TrainConfig, out: Path, budget_s: float, observer: Observer | None,
        told: Callable[[str], None],
    ) -> Tuning:  # fmt: skip
        """With the methods and lengths that `config` leaves open."""
        given = config.model_dump(exclude_unset=True)
        return cls(
            config,
            out,
            budget_s=budget_s,
            methods=(given["method"],) if "method" in given else METHODS,
            rungs=rungs_of(given.get("epochs")),
            observer=observer,
            told=told,
        )

    @classmethod
    def resumed(
        cls,
        out: str | Path,
        given: Mapping[str, Any],
        budget: str | None = None,
        *,
        observer: Observer | None = None,
        told: Callable[[str], None] = lambda line: None,
    ) -> Tuning:
        """The search in `out` with its own settings and, unless another is given, its own time.

        Raises:
            AdapterError: there is no search.
            VituneError: `given` differs from the search's own settings, or `budget` is no duration.
        """
        own, budget_s = AttemptLog(Path(out)).request()
        asked = _as_given(TrainConfig.make({**own, **given}))
        for name, value in asked.items():
            if value != own.get(name):
                raise VituneError(
                    f"--resume: got {name}={value!r}, expected the settings that the search began "
                    "with. Leave it out, or start a new search."
                )
        if budget is not None:
            budget_s = seconds_of(budget)
        return cls._for(TrainConfig.make(own), Path(out), budget_s, observer, told)

    def run(self, resume: bool = False) -> Trained:
        """Search until the time is up, then train the chosen setting on all labelled images."""
        folder = RunFolder(self.out)
        if not resume:
            folder.check_new()
            self.log.begin(_as_given(self.config), self.budget_s)
        self.log.folder.mkdir(parents=True, exist_ok=True)
        chosen = self.log.decided()
        if chosen is None:
            try:
                with folder.held():
                    chosen = self._searched()
            except VituneError:
                if not resume:
                    self._forget()
                raise
        elif not folder.config.is_file():
            self._images()  # the refit reads them anew
        return self._refit(chosen)

    def _forget(self) -> None:
        """Remove what a search left that was refused before its first attempt was done."""
        (self.out / LOCK).unlink(missing_ok=True)
        if not self.log.num_kept():
            shutil.rmtree(self.log.folder, ignore_errors=True)
        with suppress(OSError):  # something was tried
            self.out.rmdir()

    def _searched(self) -> Attempt:
        """Search, and return the chosen attempt."""
        splits = self._images()
        probe = self._probe(splits)
        self._groups = probe.groups
        earlier, self.earlier_s = self.log.read(len(probe.losses))
        self.attempts += earlier
        self._require_time(probe, splits)
        self._search(splits, probe)
        chosen = choose(self.attempts, self._can_refit, self._groups)
        self.log.decide(self.attempts, chosen, self.used_s, self._groups)
        return chosen

    @property
    def notice(self) -> str:
        """What the user should know of the backbone; '' for nothing."""
        return with_backbone(self.config)[1]

    @property
    def used_s(self) -> float:
        """Seconds used so far, including earlier parts of the search."""
        return self.earlier_s + time.monotonic() - self.started

    def _images(self) -> Splits:
        self.config, _ = with_backbone(self.config)
        classes = open_source(self.config.data).classes
        backbone = load_backbone(
            self.config.backbone, num_classes=len(classes), **backbone_arguments(self.config)
        )
        prepared = self.config.prepared(backbone.preprocessing)
        self.backbone = backbone = replace(backbone, preprocessing=prepared)
        splits = prepare_data(self.config, backbone, self.observer)
        if splits.val is None:
            raise VituneError("--tune: got no validation images, expected some to choose on.")
        assert splits.train is not None
        self.log.keep_images(UsedImages.of(splits.train, splits.val))
        self._more_images = 1 + len(splits.val) / len(splits.train)
        return splits

    def _probe(self, splits: Splits) -> Probe:
        """The solved probe: a candidate, and where every trial starts."""
        device = "cuda" if self._on_gpu() else "cpu"
        probe = solve_probe(self.backbone, splits, device=device, seed=self.config.seed)
        assert probe.val_accuracy is not None
        self.attempts.append(
            Attempt(
                -1, "linear", 1.0, None, 0, 0, float(probe.losses.mean()), probe.val_accuracy,
                probe.sound_temperature, probe.seconds, probe.losses,
            )
        )  # fmt: skip
        return probe

    def _on_gpu(self) -> bool:
        return self.config.device != "cpu" and torch.cuda.is_available()

    def _require_time(self, probe: Probe, splits: Splits) -> None:
        """Refuse a budget that one run of the first rung and its refit would exceed."""
        if len(self.attempts) > 1:
            return
        run_s = self.rungs[0] * first_epoch_s(probe.seconds)
        needed = self.used_s + 2.2 * run_s
        if needed > self.budget_s:
            raise VituneError(
                f"--tune: got {self.budget_s:.0f} s, expected at least {needed:.0f} s: one run of "
                f"{self.rungs[0]} epochs on {len(splits.train or ())} images takes about "
                f"{run_s:.0f} s here, and it is trained twice."
            )

    def _search(self, splits: Splits, probe: Probe) -> None:
        journal = self.log.folder / "journal.log"
        study = halving_study(
            journal, self.methods, first_rung=self.rungs[0], seed=self.config.seed
        )
        while self._has_time(self.rungs[0], None):
            trial = study.ask()
            method = trial.suggest_categorical("method", list(self.methods))
            factor = trial.suggest_float("factor", *FACTORS, log=True)
            value = None
            for rung in self.rungs:
                if not self._has_time(rung, method):
                    break
                attempt = self._attempt(trial.number, method, factor, rung, splits, probe)
                if attempt.has_failed:
                    value = math.inf if value is None else value
                    break
                value = attempt.loss
                trial.report(value, rung)
                if trial.should_prune():
                    break
            end_trial(study, trial, value)

    def _attempt(
        self, trial: int, method: str, factor: float, epochs: int, splits: Splits, probe: Probe
    ) -> Attempt:
        """Train one rung, or take it over from an earlier part of the search."""
        known = next(
            (
                one for one in self.attempts
                if (one.method, one.epochs) == (method, epochs)
                and abs(one.factor / factor - 1) < 1e-9
            ),
            None,
        )  # fmt: skip
        if known is not None:
            return known
        begun = time.monotonic()
        config = self.config_of(method, factor, epochs, splits, probe)
        asked = Attempt(
            trial, method, factor, config.lr, epochs, 0, math.inf, 0.0, 1.0, 0.0,
            np.full_like(self.attempts[0].losses, math.inf), config.head_lr,
            config.start or "probe", config.augment,
        )  # fmt: skip
        try:
            trained = fit(config, splits=splits, probe=probe)
        except OF_ONE_RUN as error:
            seconds = time.monotonic() - begun
            return self._failed(error, replace(asked, seconds=seconds, failure=one_line(error)))
        assert trained.seen is not None and trained.summary.calibration is not None
        losses = calibrated_losses(*trained.seen).numpy()
        reported = trained.summary.reported
        attempt = replace(
            asked,
            epoch=reported.epoch or 0,
            loss=float(losses.mean()),
            accuracy=reported.val_accuracy or 0.0,
            temperature=trained.summary.calibration.temperature,
            seconds=time.monotonic() - begun,
            losses=losses,
            share=trained.summary.share,
        )
        return self._kept(
            attempt, f"validation loss {attempt.loss:.3f}, accuracy {100 * attempt.accuracy:.1f} %"
        )

    def _failed(self, error: VituneError, attempt: Attempt) -> Attempt:
        """A rung that training refused or gave up, such as a rate at which the loss diverges.

        Raises:
            VituneError: `error`, if all the first runs failed.
        """
        tried = [one for one in self.attempts if one.epochs]
        enough = max(FEWEST_FAILURES, len(self.methods))
        if len(tried) + 1 >= enough and all(one.has_failed for one in tried):
            raise error
        return self._kept(attempt, f"failed: {attempt.failure}")

    def _kept(self, attempt: Attempt, what: str) -> Attempt:
        """The attempt, after it was recorded and told."""
        self.attempts.append(attempt)
        self.log.add(attempt, len(self.attempts), self.used_s)
        self.told(
            f"{attempt.method} at rate {attempt.lr:.2g}, {attempt.epochs} epochs: {what} "
            f"({self.used_s:.0f} of {self.budget_s:.0f} s)"
        )
        return attempt

    def config_of(
        self, method: str, factor: float, epochs: int, splits: Splits, probe: Probe
    ) -> TrainConfig:
        """The settings of a trial; its rate is `factor` times the rule's for so many steps."""
        assert splits.train is not None
        base = self.config.model_copy(update={"method": method, "epochs": epochs, "refit": False})
        ruled = with_start(
            base, self.backbone.model, len(splits.train), 1, probe, longest=self.rungs[-1]
        )
        rates = {
            name: float(f"{factor * rate:.3g}")
            for name, rate in (("lr", ruled.lr), ("head_lr", ruled.head_lr))
            if rate is not None
        }
        device = "cuda" if self._on_gpu() else "cpu"
        if ruled.start not in self._augments:
            judged = with_augmentation(ruled, self.backbone, splits, probe, device)
            self._augments[ruled.start] = judged.augment
        augment = self._augments[ruled.start]
        return ruled.model_copy(update={**rates, "augment": augment, "choose_best": False})

    def _has_time(self, epochs: int, method: str | None) -> bool:
        """Whether there is time for a rung and then the refit of this rung or of today's choice."""
        run_s = epoch_s(self.attempts, method) * epochs
        choice = choose(self.attempts, groups=self._groups)
        longer_s = max(run_s, choice.seconds if choice.epochs else 0.0)
        return self.used_s + LATER * run_s + self._refit_s(longer_s) <= self.budget_s

    def _can_refit(self, attempt: Attempt) -> bool:
        """Whether there is time to train it again; the solved probe takes next to none."""
        needed = self._refit_s(attempt.seconds) if attempt.epochs else 0.0
        return self.used_s + needed <= self.budget_s

    def _refit_s(self, seconds: float) -> float:
        return refit_s(self.attempts, seconds, self._more_images)

    def _refit(self, chosen: Attempt) -> Trained:
        """Train on training and validation images together, with validation's temperature."""
        values: dict[str, Any] = {"method": chosen.method, "refit": True, "patience": None}
        if chosen.epochs:
            values |= {"lr": chosen.lr, "head_lr": chosen.head_lr, "start": chosen.start}
            values |= {"epochs": max(1, chosen.epoch), "augment": chosen.augment}
        folder = RunFolder(self.out, beside=SEARCH_FILES)
        if folder.config.is_file():
            return fit(out=folder, resume=True, observer=self.observer,
                       temperature=chosen.temperature, share=chosen.share)  # fmt: skip
        given = self.config.model_dump(exclude_unset=True)
        config = TrainConfig.make({**given, **values})
        return fit(config, out=folder, observer=self.observer,
                   temperature=chosen.temperature, share=chosen.share)  # fmt: skip


def _as_given(config: TrainConfig) -> dict[str, Any]:
    """The settings that were given, with absolute paths, as JSON holds them."""
    values = with_absolute_paths(config).model_dump(mode="json")
    return {name: value for name, value in values.items() if name in config.model_fields_set}
