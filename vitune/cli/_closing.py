"""The last lines of `vitune train`: what validation says, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def closing_lines(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """One line each on how a solved head was chosen, early stopping, the probe, confidence."""
    solved = summary.get("solved")
    if solved:
        name, value = next(iter(solved["chosen"].items()))
        chosen = f"{name} {value:.3g}"
        copies = " and mirrored copies" if solved["copies"] == "flip" else ""
        yield f"solved on the images{copies}; {chosen}, chosen by {solved['how']}"
    yield from _stopped(summary)
    verdict = summary.get("verdict")
    if verdict:
        yield _compared(verdict, summary.get("chosen") == "probe", out)
    calibration = summary.get("calibration", {})
    if calibration.get("val_ece") is not None:
        yield (
            f"temperature {calibration['temperature']:.2f} stored with the run: calibration error "
            f"on validation {_percent(calibration['val_ece'])} without it, "
            f"{_percent(calibration['val_ece_tempered'])} with it"
        )


def _stopped(summary: Mapping[str, Any]) -> Iterator[str]:
    """A hint where validation loss turned before the end."""
    reported, done = summary["reported"], summary["epochs"]
    if summary["status"] == "stopped" and reported["epoch"] is not None:
        yield (
            f"validation loss turned: stopped after epoch {done}, kept epoch {reported['epoch']}. "
            f"Try --epochs {max(1, reported['epoch'])} or a lower --lr."
        )
    elif reported["which"] == "auto" and reported["epoch"] < done:
        yield (
            f"validation loss was lower after epoch {reported['epoch']} of {done}: that one is "
            "kept. Try fewer --epochs or a lower --lr."
        )


def _compared(verdict: Mapping[str, Any], chose_probe: bool, out: str) -> str:
    """Adapted network against the solved probe, with the sampling error of the difference."""
    error = verdict["gain_error"]
    within = "" if error is None else f" ± {100 * error:.1f}"
    figures = (
        f"{_percent(verdict['adapted'])} against {_percent(verdict['probe'])} of the solved linear "
        f"probe on {verdict['num_images']} validation images, {100 * verdict['gain']:+.1f}{within} "
        "points"
    )
    if chose_probe:
        return f"the probe is better on validation and was chosen: {figures}; the adapted network "\
            f"is in {out}/adapted"  # fmt: skip
    if not verdict["paid"]:
        return f"adapting did not pay: {figures}; the probe is in {out}/probe (--choose-best)"
    return f"adapting paid: {figures}; the probe is kept in {out}/probe"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
