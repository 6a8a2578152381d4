"""What validation says of a run, and what to do about it: the last lines of `vitune train`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitune.report.formatting import counted
from vitune.runs import RunSummary, Verdict

ENOUGH_TO_BIN = 100
"""Validation images below which a calibration error is mostly chance."""


def closing_lines(summary: RunSummary, out: str = ".") -> Iterator[str]:
    """One line each on how a solved head was chosen, early stopping, the probe, confidence.

    Args:
        out: the run folder as paths shall name it.
    """
    solved = summary.solved
    if solved is not None:
        name, value = next(iter(solved.chosen.items()))
        copies = " and mirrored copies" if solved.copies == "flip" else ""
        yield f"probe solved on the images{copies}; {name} {value:.3g}, chosen by {solved.how}"
    yield from _stopped(summary)
    if summary.chosen is None and summary.share not in (None, 0.0, 1.0):
        yield (
            f"kept: weights {100 * (summary.share or 0):.0f} % of the way from the solved probe to "
            f"{_average(summary)}epoch {summary.reported.epoch}, which validation preferred to "
            "both ends"
        )
    if summary.verdict is not None:
        yield _compared(summary.verdict, summary.chosen == "probe", out)
    found = summary.calibration
    if found is not None and found.val_ece is not None and found.val_ece_tempered is not None:
        stored = f"temperature {found.temperature:.2f} stored with the run"
        number = summary.num_val or 0
        if number < ENOUGH_TO_BIN:
            yield f"{stored}, fitted to {_images(number)}: too few to state a calibration error"
            return
        chance = found.val_ece_by_chance
        by_chance = "" if chance is None else f", {_percent(chance)} by chance alone"
        yield (
            f"{stored}: calibration error on validation {_percent(found.val_ece)} without it, "
            f"{_percent(found.val_ece_tempered)} with it{by_chance}"
        )


def _stopped(summary: RunSummary) -> Iterator[str]:
    """A hint if validation loss stopped improving before the end."""
    kept, done = summary.reported.epoch, summary.epochs
    if kept is None or done is None:
        return
    stopped = f"validation loss stopped improving: stopped after epoch {done}"
    if summary.chosen is not None:
        if summary.status == "stopped":
            yield stopped
        return
    if summary.reported.is_start:
        how = f"{stopped}, and" if summary.status == "stopped" else f"{counted(done, 'epoch')}:"
        yield (
            f"{how} by cross-entropy on validation, none was clearly better than the solved "
            "probe, which is kept"
        )
    elif summary.status == "stopped":
        which = f"{_average(summary)}epoch {kept}"
        yield f"{stopped}, kept {which}. Try --epochs {max(1, kept)} or a lower --lr."
    elif summary.reported.which == "auto" and kept < done:
        yield (
            f"validation loss was lowest after epoch {kept} of {done}: {_average(summary)}that "
            "epoch is kept. Try fewer --epochs or a lower --lr."
        )


def _average(summary: RunSummary) -> str:
    return "the weights' average over " if summary.reported.averaged else ""


def _compared(verdict: Verdict, chose_probe: bool, out: str) -> str:
    """Adapted network against the solved probe, with the sampling error of the difference."""
    error = math.nan if verdict.gain_error is None else 100 * verdict.gain_error
    within = "" if math.isnan(error) else f" ± {error:.1f}"
    figures = (
        f"{_percent(verdict.adapted)} against {_percent(verdict.probe)} of the solved linear "
        f"probe on {_images(verdict.num_images)}, {100 * verdict.gain:+.1f}{within} points"
    )
    judged_by = ""
    if not verdict.is_clear and verdict.loss_gain:
        lower = "lower" if verdict.loss_gain > 0 else "higher"
        loss_error = verdict.loss_gain_error
        within = "" if loss_error is None else f" ± {loss_error:.3f}"
        figures += f", calibrated cross-entropy {abs(verdict.loss_gain):.3f}{within} {lower}"
        judged_by = ", by cross-entropy"
    is_tie = verdict.probe_is_better and not verdict.is_clear and not verdict.loss_is_clear
    if chose_probe:
        why = (
            "as adapting made no clear difference on validation"
            if is_tie
            else f"which is better on validation{judged_by}"
        )
        return f"the probe was chosen, {why}: {figures}; the adapted network is in {out}/adapted"
    if (verdict.gain, verdict.loss_gain) == (0, 0):
        what = "made no difference"
    elif is_tie:
        what = "made no clear difference"
    else:
        what = f"{'helped' if verdict.paid else 'did not help'}{judged_by}"
    return f"adapting {what}: {figures}; the probe is in {out}/probe"


def _images(number: int) -> str:
    return counted(number, "validation image")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
