"""`vitune audit membership`: can somebody tell from a trained run which images trained it?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitune.data import ImageList, Splits, augmentation, load_splits
from vitune.errors import VituneError
from vitune.inference import LoadedRun, load_run
from vitune.methods import get_method
from vitune.privacy.membership import (
    RATES,
    AttackResult,
    Estimate,
    Values,
    chosen_a,
    dominated,
    estimated_auc,
    judged,
    log_confidences,
    log_outside,
    log_ratios,
    most_allowed,
)
from vitune.privacy.membership_findings import Exposed, MembershipFound, remarks
from vitune.privacy.membership_sides import Listed, recorded_images, sides_of
from vitune.privacy.reference_runs import ReferenceRuns, claim, drawn, settings_beside
from vitune.runs import RunFolder
from vitune.training import TrainConfig

MOST_EXPOSED = 12
RUN = "run"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MembershipSettings:
    """Whose membership is attacked, and with what.

    Args:
        run: a finished run folder.
        data: images that trained the run; None takes all of them from the run's own data.
        others: images of the same kind that did not; None takes the test split of the run's data.
        references: runs trained like it on random images, for RMIA; 0 attacks by loss alone.
        beside: methods trained on the same members and attacked in the same way.
        skip_misplaced: leave out images of the wrong side instead of refusing them.
        seed: decides what the reference runs train on, and their own seeds.
        out: folder for the runs that are trained; a stopped audit goes on there.

    Raises:
        VituneError: an unknown method, or a single reference run.
    """

    run: str
    data: str | None = None
    others: str | None = None
    references: int = 4
    beside: tuple[str, ...] = ("linear", "full")
    skip_misplaced: bool = False
    seed: int = 0
    device: str = "auto"
    out: str = "membership"

    def __post_init__(self) -> None:
        if self.references < 0 or self.references == 1:
            raise VituneError(
                f"--references: got {self.references}, expected 0 for the attack by loss alone, or "
                "2 and more: each image must be left out by one of them."
            )
        if self.seed < 0:
            raise VituneError(f"--seed: got {self.seed}, expected a whole number of at least 0.")
        for name in self.beside:
            get_method(name)


def audit_membership(
    settings: MembershipSettings,
    *,
    on_read: Progress | None = None,
    on_train: Progress | None = None,
) -> MembershipFound:
    """Attack a run by loss and by RMIA, and other methods beside it in the same way.

    A reference run has the run's own settings. It trains on as many images as the run did, but at
    most on half of the members and others together, drawn at random class by class; the run's
    validation images stay what they are. RMIA asks how much surer the run is of an image than
    the reference runs that did not train on it. So the attacker knows the recipe, and owns the
    images without knowing which of them are members.

    Args:
        on_read: called with (images read, images in all).
        on_train: called with (runs trained, runs in all).

    Raises:
        VituneError: a folder that is no finished run, or did not write down its images.
        DataError: too few images, other classes, or images of the wrong side.
        OutputError: `out` holds something else.
    """
    return _Audit(settings, on_read).findings(on_train or (lambda done, total: None))


class _Audit:
    def __init__(self, settings: MembershipSettings, on_read: Progress | None) -> None:
        self.settings = settings
        self.folder = RunFolder.open(settings.run)
        self.used = recorded_images(self.folder)
        self.config = TrainConfig.read(self.folder.config, {"device": settings.device})
        summary = self.folder.read_summary()
        if summary is None:
            raise VituneError(
                f"run: got {settings.run!r}, which is not finished, expected a finished run. "
                f"Finish it: vitune train --resume --out {settings.run}"
            )
        self.privacy = summary.privacy
        self.run = load_run(settings.run, device=settings.device, exits="full")
        self.sides = sides_of(
            self.folder, self.used, self.run.classes, settings.data, settings.others,
            skip_misplaced=settings.skip_misplaced,
        )  # fmt: skip
        claim(Path(settings.out), self._mark())
        plain = self._read(None, on_read)
        assert plain.train is not None
        self.pool, self.val = plain.train, plain.val
        inside = {digest for _, digest in self.sides.members}
        digests = [row.tobytes() for row in self.pool.content_digests]
        self.is_member = np.array([digest in inside for digest in digests], bool)
        self.beside = [name for name in settings.beside if name != self.run.card.method]
        num_trained = len(self.used.tables["train"])
        self.size = min(num_trained, len(self.pool) // 2) if settings.references else 0
        self.trained_on = drawn(self.pool.labels, self.size, settings.references, settings.seed)

    def findings(self, on_train: Progress) -> MembershipFound:
        """Everything, model by model."""
        total = (1 + self.settings.references) * (1 + len(self.beside)) - 1
        runs = self._runs() if total else None
        count = _Counting(on_train, total)
        results: list[AttackResult] = []
        choices: dict[str, float] = {}
        exposed: tuple[Exposed, ...] = ()
        blind: Estimate | None = None
        probes: list[str] = []
        for name in (RUN, *self.beside):
            own, references = self._answers(name, runs, count)
            title = f"{self.run.card.method} (run)" if name == RUN else name
            judge = partial(
                judged, title, is_member=self.is_member, labels=self.pool.labels,
                classes=self.run.classes,
            )  # fmt: skip
            results.append(judge("loss", scores=own))
            probes += [title] if self._is_probe(name) else []
            scores = own
            if len(references):
                choices[title] = chosen_a(references, self.trained_on)
                scores = log_ratios(own, references, ~self.trained_on, choices[title])
                results.append(judge("rmia", scores=scores))
            if name == RUN:
                outside = None
                if len(references):
                    outside = np.exp(log_outside(references, ~self.trained_on))
                exposed = self._exposed(scores, own, outside)
                blind = None if outside is None else estimated_auc(outside, self.is_member)
        return self._told(results, choices, exposed, blind, probes)

    def _is_probe(self, name: str) -> bool:
        """Whether validation kept nothing of what training changed in a model."""
        folder = self.folder if name == RUN else RunFolder(Path(self.settings.out) / name)
        summary = folder.read_summary()
        return summary is not None and summary.reported.is_start

    def _answers(
        self, name: str, runs: ReferenceRuns | None, count: _Counting
    ) -> tuple[Values, Values]:
        """Log confidences of a model (b,) and of its reference runs (r, b)."""
        config = self.config if name == RUN else settings_beside(self.config, name)
        target, lines = self.run, []
        if runs is not None:
            if name != RUN:
                target = self._loaded(runs.trained(name, config, self.is_member))
                count.one_more()
            for index, chosen in enumerate(self.trained_on):
                seeded = config.model_copy(update={"seed": self.settings.seed + 1 + index})
                path = runs.trained(f"references/{name}-{index}", seeded, chosen)
                lines.append(self._confidences(self._loaded(path)))
                count.one_more()
        return self._confidences(target), np.array(lines).reshape(-1, len(self.pool))

    def _runs(self) -> ReferenceRuns:
        """Where runs are trained, with what they train on."""
        size = self.run.card.preprocessing.image_size
        augment = augmentation(self.config.augment, size)
        enlarged = self.pool
        if augment.train_size(size) is not None:
            enlarged = self._read(augment.train_size(size), None).train or self.pool
        return ReferenceRuns(Path(self.settings.out), self.pool, enlarged, self.val)

    def _mark(self) -> dict[str, Any]:
        """What tells this audit from others that might have left their runs in `out`."""
        return {
            "run": dict(self.run.card.checksums),
            "set_of_members": _hash(self.sides.members),
            "set_of_others": _hash(self.sides.others),
            "seed": self.settings.seed,
        }

    def _read(self, train_size: tuple[int, int] | None, on_read: Progress | None) -> Splits:
        sides = self.sides
        records = {
            "train": tuple(record for record, _ in (*sides.members, *sides.others)),
            **({"val": tuple(record for record, _ in sides.val)} if sides.val else {}),
        }
        listed = ImageList(self.settings.run, records, self.run.classes, fixed_lists=True)
        return load_splits(
            listed, self.run.card.preprocessing, seed=0, val_fraction=0, include=tuple(records),
            train_size=train_size, skip_bad_images=self.config.skip_bad_images, on_progress=on_read,
        )  # fmt: skip

    def _loaded(self, path: Path) -> LoadedRun:
        return load_run(path, device=self.settings.device, exits="full")

    def _confidences(self, run: LoadedRun) -> Values:
        """Log confidences (b,) at temperature 1: whoever holds the adapter can undo its own."""
        logits = torch.cat(list(run.logits(self.pool))) * run.card.temperature
        return log_confidences(logits.numpy(), self.pool.labels)

    def _exposed(self, scores: Values, own: Values, outside: Values | None) -> tuple[Exposed, ...]:
        members = np.flatnonzero(self.is_member)
        first = members[np.argsort(-scores[members], kind="stable")][:MOST_EXPOSED]
        shares = dominated(scores, scores[~self.is_member])
        return tuple(
            Exposed(
                self.pool.paths[index],
                self.run.classes[self.pool.labels[index]],
                float(np.exp(own[index])),
                None if outside is None else float(outside[index]),
                float(shares[index]),
            )
            for index in first
        )

    def _told(
        self,
        results: list[AttackResult],
        choices: dict[str, float],
        exposed: tuple[Exposed, ...],
        blind: Estimate | None,
        probes: list[str],
    ) -> MembershipFound:
        spent = self.privacy
        num_members = int(self.is_member.sum())
        found = MembershipFound(
            run=self.settings.run,
            method=self.run.card.method,
            num_trained=len(self.used.tables["train"]),
            num_members=num_members,
            num_others=len(self.pool) - num_members,
            num_references=self.settings.references,
            reference_size=self.size,
            offline_a=choices,
            blind=blind,
            probes=tuple(probes),
            results=tuple(results),
            privacy=spent,
            allowed=() if spent is None else tuple(
                most_allowed(rate, spent.epsilon, spent.delta) for rate in RATES
            ),
            exposed=exposed,
            notes=self.sides.notes,
        )  # fmt: skip
        return replace(found, notes=(*found.notes, *remarks(found)))


class _Counting:
    """Runs trained so far."""

    def __init__(self, tell: Progress, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def one_more(self) -> None:
        self.done += 1
        self.tell(self.done, self.total)


def _hash(listed: Listed) -> str:
    """What a side holds, whatever the order."""
    return hashlib.sha256(b"".join(sorted(digest for _, digest in listed))).hexdigest()
