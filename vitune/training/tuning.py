"""The best run within a time budget: methods, rates and epochs by successive halving, then a refit.

Every trial is a method and a multiple of the rule's rate. It is trained for a few epochs; while it
is among the best third of those that got as far, it is trained anew for three times as many. What
is compared is validation cross-entropy at the best temperature. Trials are written to a journal
after every rung, so that a search that was killed goes on where it stood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitune.backbones import load_backbone
from vitune.data import Splits, open_source
from vitune.errors import VituneError
from vitune.files import write_atomic
from vitune.methods import get_method
from vitune.ops import calibrated_losses, paired
from vitune.runs import LOCK, RunFolder
from vitune.training.augmenting import with_augmentation
from vitune.training.fitting import fit
from vitune.training.keeping import Trained, backbone_arguments
from vitune.training.observer import Observer
from vitune.training.probing import Probe, solve_probe
from vitune.training.settling import with_backbone
from vitune.training.splits_to_train import prepare_data
from vitune.training.starting import with_start
from vitune.training.train_config import TrainConfig

METHODS = ("rlrr", "lora", "ssf", "hta", "full")
"""Tried where the user names no method."""

FACTORS = (0.1, 10.0)
"""Least and largest multiple of the rule's rate."""

RUNGS = (3, 10, 30)
REDUCTION = 3
SEARCH_FILES = ("tune", "tune.json", "tune.md")
"""What a search leaves in the run folder before its refit."""

STEP_OVER_FORWARD = 4.0
"""A training step over a forward pass, for the first estimate of what a run takes."""


@dataclass(frozen=True)
class Attempt:
    """One rung of one trial.

    Args:
        factor: its rate over the rule's.
        loss, accuracy: on validation, cross-entropy at the best temperature.
        epochs: of the rung; 0 for the solved probe.
        epoch: whose weights were the ones that counted.
        losses: (n,) of each validation image.
        head_lr: of the classifier, where it has its own.
        start: where it was started, "probe" or "plain".
        augment: the augmentation it was trained with.
        share: how far validation went from the probe to the trained weights.
    """

    trial: int
    method: str
    factor: float
    lr: float | None
    epochs: int
    epoch: int
    loss: float
    accuracy: float
    temperature: float
    seconds: float
    losses: np.ndarray
    head_lr: float | None = None
    start: str = "probe"
    augment: str = "none"
    share: float | None = None

    def row(self) -> dict[str, Any]:
        """For tune.json, without the images' losses."""
        return {key: value for key, value in vars(self).items() if key != "losses"}


class Tuning:
    """One search in the run folder `out`; `run` gives the refitted result.

    Args:
        config: everything but method, rate and epochs.
        methods: to try.
        budget_s: for search and refit together, in seconds; what an earlier, killed part used up
            counts.
        rungs: epochs of the rungs.
        told: is called with one line per finished rung.

    Raises:
        VituneError: no validation images can be had, or the budget is too small for one run.
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
        self.methods, self.rungs, self.told = tuple(methods), tuple(rungs), told
        self.observer = observer or Observer()
        self.folder = out / "tune"
        self.started = time.monotonic()
        self.earlier_s = 0.0
        self.attempts: list[Attempt] = []

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
            VituneError: no duration, or a setting that the search decides.
        """
        given = config.model_dump(exclude_unset=True)
        require_tunable(given)
        return cls(
            config,
            Path(out),
            budget_s=seconds_of(budget),
            methods=(given["method"],) if "method" in given else METHODS,
            rungs=rungs_of(given.get("epochs")),
            observer=observer,
            told=told,
        )

    def run(self, resume: bool = False) -> Trained:
        """Search until the time is up, then train the chosen setting on all labelled images."""
        folder = RunFolder(self.out)
        if not resume:
            folder.check_new()
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen = self._decided()
        if chosen is None:
            try:
                with folder.held():
                    chosen = self._searched()
            except VituneError:
                self._forget()
                raise
        return self._refit(chosen)

    def _forget(self) -> None:
        """Leave nothing of a search that was refused before its first attempt."""
        (self.out / LOCK).unlink(missing_ok=True)
        for folder in (self.folder, self.out):
            with suppress(OSError):  # something was tried
                folder.rmdir()

    def _searched(self) -> Attempt:
        """The choice at the end of the search."""
        splits = self._images()
        probe = self._probe(splits)
        self._restore()
        self._require_time(probe, splits)
        self._search(splits, probe)
        chosen = choose(self.attempts)
        self._write_report(chosen)
        return chosen

    @property
    def used_s(self) -> float:
        """Seconds used up, those of earlier parts included."""
        return self.earlier_s + time.monotonic() - self.started

    def _images(self) -> Splits:
        self.config, _ = with_backbone(self.config)
        classes = open_source(self.config.data).classes
        backbone = load_backbone(
            self.config.backbone, num_classes=len(classes), **backbone_arguments(self.config)
        )
        self.backbone = backbone
        splits = prepare_data(self.config, backbone, self.observer)
        if splits.val is None:
            raise VituneError("--tune: got no validation images, expected some to choose on.")
        return splits

    def _probe(self, splits: Splits) -> Probe:
        """The solved probe: a candidate, and where every trial starts."""
        device = "cuda" if self._on_gpu() else "cpu"
        probe = solve_probe(self.backbone, splits, device=device, seed=self.config.seed)
        assert probe.val_accuracy is not None
        self.attempts.append(
            Attempt(
                -1, "linear", 1.0, None, 0, 0, float(probe.losses.mean()), probe.val_accuracy,
                probe.temperature, probe.seconds, probe.losses,
            )
        )  # fmt: skip
        return probe

    def _on_gpu(self) -> bool:
        return self.config.device != "cpu" and torch.cuda.is_available()

    def _require_time(self, probe: Probe, splits: Splits) -> None:
        """One run of the first rung and its refit must fit in."""
        if len(self.attempts) > 1:
            return
        epoch_s = probe.seconds / 2 * STEP_OVER_FORWARD
        needed = self.used_s + 2.2 * self.rungs[0] * epoch_s
        if needed > self.budget_s:
            raise VituneError(
                f"--tune: got {self.budget_s:.0f} s, expected at least {needed:.0f} s: one run of "
                f"{self.rungs[0]} epochs on {len(splits.train or ())} images takes about "
                f"{self.rungs[0] * epoch_s:.0f} s here, and it is trained twice."
            )

    def _search(self, splits: Splits, probe: Probe) -> None:
        study = self._study()
        while self._has_time(self.rungs[0], None):
            trial = study.ask()
            method = trial.suggest_categorical("method", list(self.methods))
            factor = trial.suggest_float("factor", *FACTORS, log=True)
            value = None
            for rung in self.rungs:
                if not self._has_time(rung, method):
                    break
                attempt = self._attempt(trial.number, method, factor, rung, splits, probe)
                value = attempt.loss
                trial.report(value, rung)
                if trial.should_prune():
                    break
            study.tell(trial, value, state=None if value is not None else _failed())

    def _study(self) -> Any:
        """The journal of this search, its warm start queued when it is new."""
        optuna = require_optuna()
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(self.folder / "journal.log"))
        )
        study = optuna.create_study(
            study_name="tune",
            storage=storage,
            load_if_exists=True,
            direction="minimize",
            sampler=optuna.samplers.TPESampler(
                seed=self.config.seed, n_startup_trials=2 * len(self.methods)
            ),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.rungs[0], reduction_factor=REDUCTION
            ),
        )
        if not study.trials:
            for factor in (1.0, 0.3, 3.0):
                for method in self.methods:
                    study.enqueue_trial({"method": method, "factor": factor})
        running = optuna.trial.TrialState.RUNNING
        for trial in study.get_trials(deepcopy=False, states=(running,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)
        return study

    def _attempt(
        self, trial: int, method: str, factor: float, epochs: int, splits: Splits, probe: Probe
    ) -> Attempt:
        """Train one rung, or read what an earlier part of the search has of it."""
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
        trained = fit(config, splits=splits, probe=probe)
        assert trained.seen is not None and trained.summary.calibration is not None
        losses = calibrated_losses(*trained.seen).numpy()
        reported = trained.summary.reported
        attempt = Attempt(
            trial, method, factor, config.lr, epochs, reported.epoch or 0, float(losses.mean()),
            reported.val_accuracy or 0.0, trained.summary.calibration.temperature,
            time.monotonic() - begun, losses, config.head_lr, config.start or "probe",
            config.augment, trained.summary.share,
        )  # fmt: skip
        self.attempts.append(attempt)
        self._remember(attempt)
        self.told(
            f"{method} at rate {config.lr:.2g}, {epochs} epochs: validation loss "
            f"{attempt.loss:.3f}, accuracy {100 * attempt.accuracy:.1f} % "
            f"({self.used_s:.0f} of {self.budget_s:.0f} s)"
        )
        return attempt

    def config_of(
        self, method: str, factor: float, epochs: int, splits: Splits, probe: Probe
    ) -> TrainConfig:
        """The settings of a trial; its rate is `factor` times the rule's for so many steps."""
        assert splits.train is not None
        base = self.config.model_copy(update={"method": method, "epochs": epochs, "refit": False})
        ruled = with_start(base, self.backbone.model, len(splits.train), 1, probe)
        rates = {
            name: float(f"{factor * rate:.3g}")
            for name, rate in (("lr", ruled.lr), ("head_lr", ruled.head_lr))
            if rate is not None
        }
        device = "cuda" if self._on_gpu() else "cpu"
        ruled = with_augmentation(ruled, self.backbone, splits.val, probe, device)
        return ruled.model_copy(update={**rates, "choose_best": False})

    def _has_time(self, epochs: int, method: str | None) -> bool:
        """Whether a rung and the refit of the best so far, or of this rung, still fit in."""
        run_s = self._epoch_s(method) * epochs
        trained = [one for one in self.attempts if one.epochs]
        best = min(trained, key=lambda one: one.loss, default=None)
        refit_s = 1.3 * max(run_s, 0.0 if best is None else best.seconds)
        return self.used_s + 1.1 * run_s + refit_s <= self.budget_s

    def _epoch_s(self, method: str | None) -> float:
        """Seconds per epoch of a method as measured, else of the slowest that was."""
        measured = [(one.method, one.seconds / one.epochs) for one in self.attempts if one.epochs]
        own = [seconds for name, seconds in measured if name == method]
        if own:
            return own[-1]
        if measured:
            return max(seconds for _, seconds in measured)
        return self.attempts[0].seconds / 2 * STEP_OVER_FORWARD

    def _remember(self, attempt: Attempt) -> None:
        """One line and one file of losses; the line comes last, so that it means both."""
        name = f"losses-{len(self.attempts)}.npy"
        np.save(self.folder / name, attempt.losses)
        line = {**attempt.row(), "losses": name, "used_s": self.used_s}
        with (self.folder / "attempts.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _restore(self) -> None:
        path = self.folder / "attempts.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # the kill fell into this line
                continue
            self.earlier_s = row.pop("used_s")
            losses = np.load(self.folder / row.pop("losses"))
            self.attempts.append(Attempt(**row, losses=losses))

    def _decided(self) -> Attempt | None:
        """The choice of a search that was killed during its refit."""
        path = self.out / "tune.json"
        if not path.is_file():
            return None
        return Attempt(**json.loads(path.read_text())["chosen"], losses=np.zeros(0))

    def _write_report(self, chosen: Attempt) -> None:
        write_atomic(self.out / "tune.md", report(self.attempts, chosen, self.used_s))
        rows = [one.row() for one in self.attempts]
        write_atomic(
            self.out / "tune.json", json.dumps({"chosen": chosen.row(), "tried": rows}, indent=1)
        )

    def _refit(self, chosen: Attempt) -> Trained:
        """Train on training and validation images together; confidence as found on validation."""
        values: dict[str, Any] = {"method": chosen.method, "refit": True}
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


def choose(attempts: Sequence[Attempt]) -> Attempt:
    """The best on validation, or of those within one standard error the closest to the rule.

    The error is that of the paired difference of images' losses. Closest is the rate nearest to
    the rule's; among equally near ones the lower loss.
    """
    best = min(attempts, key=lambda one: one.loss)
    near = []
    for one in attempts:
        mean, error = paired(torch.from_numpy(one.losses), torch.from_numpy(best.losses))
        if one is best or (one.epochs and mean <= error):
            near.append(one)
    return min(near, key=lambda one: (abs(float(np.log(one.factor))), one.loss))


def report(attempts: Sequence[Attempt], chosen: Attempt, used_s: float) -> str:
    """What was tried, the best first, as Markdown."""
    lines = [
        f"# What was tried in {used_s:.0f} s",
        "",
        "Loss is validation cross-entropy at the best temperature; the difference is that to the "
        "lowest, ± its standard error. The chosen setting is the one closest to vitune's own rate "
        "of those within one error.",
        "",
        "| | method | rate | rate over rule | epochs | loss | difference | accuracy, % | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    best = min(attempts, key=lambda one: one.loss)
    for one in sorted(attempts, key=lambda one: one.loss):
        mean, error = paired(torch.from_numpy(one.losses), torch.from_numpy(best.losses))
        mark = "chosen" if one is chosen else ""
        rate = "solved" if one.lr is None else f"{one.lr:.2g}"
        difference = "" if one is best else f"{mean:.3f} ± {error:.3f}"
        lines.append(
            f"| {mark} | {one.method} | {rate} | {one.factor:.2g} | {one.epochs or '–'} | "
            f"{one.loss:.3f} | {difference} | {100 * one.accuracy:.1f} | {one.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def rungs_of(epochs: int | None) -> tuple[int, ...]:
    """A ninth, a third and all of the epochs that were asked for."""
    if epochs is None:
        return RUNGS
    return tuple(sorted({max(1, epochs // 9), max(1, epochs // 3), epochs}))


def require_tunable(given: Mapping[str, Any]) -> None:
    """Refuse settings that the search decides.

    Raises:
        VituneError: one of them was given, the method is solved, or the run is to be private.
    """
    for name in ("lr", "head_lr", "start", "head_init", "refit", "select", "choose_best"):
        if name in given:
            raise VituneError(
                f"--tune: got it together with --{name.replace('_', '-')} {given[name]}, expected "
                "one of the two: the search decides that."
            )
    if given.get("dp_epsilon") is not None:
        raise VituneError(
            "--tune: got it together with --dp-epsilon, expected one of the two: every run of a "
            "search spends privacy of its own. Choose the settings on public images."
        )
    if "method" in given and get_method(given["method"]).solved:
        raise VituneError(
            f"--tune: got --method {given['method']}, which is solved, expected one that is "
            "trained. Leave --tune out."
        )


def seconds_of(text: str) -> float:
    """1200 from '20m'; also '90s', '1.5h'.

    Raises:
        VituneError: something else than a positive duration.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise VituneError(f"--tune: got {text!r}, expected a duration such as 90s, 20m or 2h.")
    return seconds


def require_optuna() -> Any:
    """The library that proposes settings.

    Raises:
        VituneError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise VituneError(
            "--tune: got no Optuna, expected it to be installed: pip install 'vitune[search]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _failed() -> Any:
    return require_optuna().trial.TrialState.FAIL
