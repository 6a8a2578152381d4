"""Membership attacks as arithmetic: from confidences to scores, ROC curves and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_softmax, logsumexp, ndtri
from scipy.stats import hypergeom
from sklearn.metrics import roc_auc_score, roc_curve

from vitune.errors import VituneError
from vitune.exits import upper_bound

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
RATES = (0.01, 0.001)
"""False positive rates at which recognised members are counted."""
OFFLINE_A = 0.3
"""RMIA's a where too few reference runs are there to choose it on."""
GRID = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TprAt:
    """Members recognised at the lowest threshold that at most a share `rate` of others passes.

    Args:
        rate: the false positive rate that was asked for.
        fpr: share of the others above the threshold.
        tpr: share of the members above it, the threshold taken as given.
        by_chance: probability of as many members or more if membership left no trace.
    """

    rate: float
    threshold: float
    fpr: Estimate
    tpr: Estimate
    by_chance: float


@dataclass(frozen=True)
class ClassRow:
    """How one class fares; `caught` are its members above the threshold for 1 % of all others."""

    name: str
    num_members: int
    num_others: int
    auc: Estimate | None
    caught: Estimate | None


@dataclass(frozen=True)
class AttackResult:
    """One attack on one model.

    Args:
        model: what the table calls it.
        attack: "loss" or "rmia".
        at: in the order of RATES; None where there are too few others to resolve the rate.
        fpr, tpr: the ROC curve.
    """

    model: str
    attack: str
    num_members: int
    num_others: int
    auc: Estimate
    at: tuple[TprAt | None, ...]
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    per_class: tuple[ClassRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return asdict(self)


def log_confidences(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Values:
    """log p(y | x), the attack by loss: members lose less.

    LiRA's scaled confidence log(p / (1 - p)) rises with it, so that both have one ROC curve.

    Shapes: logits (b, c), labels (b,); returns (b,).
    Source: Yeom et al. (CSF 2018), with a threshold from the ROC curve instead of the mean loss.
    """
    found: Values = log_softmax(np.asarray(logits, np.float64), axis=1)
    return found[np.arange(len(found)), np.asarray(labels)]


def log_ratios(target: Values, references: Values, was_out: Mask, a: float) -> Values:
    """log Pr(x | θ) / Pr(x) with Pr(x) = ((1 + a) Pr_out(x) + 1 - a) / 2, RMIA without IN runs.

    Pr_out(x) is what `log_outside` gives the log of. RMIA's score of x (`dominated`) rises with
    this ratio for any fixed population, so that both have one ROC.

    Shapes: target (b,), references (r, b) log confidences, was_out (r, b); returns (b,).
    Args:
        a: in [0, 1]; runs that trained on x are taken to have Pr_in(x) = a Pr_out(x) + 1 - a.
    Raises:
        VituneError: an image that all reference runs trained on.
    Source: Zarifzadeh et al. (ICML 2024), offline variant.
    """
    outside = log_outside(references, was_out)
    with np.errstate(divide="ignore"):
        parts = np.log(np.array([(1 + a) / 2, (1 - a) / 2]))
    found: Values = target - np.logaddexp(outside + parts[0], parts[1])
    return found


def log_outside(references: Values, was_out: Mask) -> Values:
    """Log of the mean confidence of the reference runs that did not train on an image.

    Shapes: references (r, b) log confidences, was_out (r, b); returns (b,).
    Raises:
        VituneError: an image that all reference runs trained on.
    """
    counts = was_out.sum(0)
    if not counts.all():
        raise VituneError(
            f"reference runs: got {int((counts == 0).sum())} images that all of them trained on, "
            "expected one run without each. Train more."
        )
    found: Values = logsumexp(references, axis=0, b=was_out) - np.log(counts)
    return found


def dominated(ratios: Values, population: Values, gamma: float = 1.0) -> Values:
    """RMIA's score: the share of the population z with ratio(x) / ratio(z) >= γ.

    Shapes: (b,) and (z,) log ratios; returns (b,) in [0, 1].
    Source: Zarifzadeh et al. (ICML 2024).
    """
    places = np.searchsorted(np.sort(population), ratios - math.log(gamma), side="right")
    found: Values = places / len(population)
    return found


def chosen_a(references: Values, trained_on: Mask) -> float:
    """RMIA's a with the best mean AUC where each reference run is attacked with the others.

    Their members are known to the attacker. The attacked run plays no part.

    Shapes: references (r, b) log confidences; trained_on (r, b).
    """
    trials = []
    for index in range(len(references)):
        rest = np.arange(len(references)) != index
        usable = (~trained_on[rest]).any(0)
        inside = trained_on[index][usable]
        if inside.any() and not inside.all():
            out = ~trained_on[rest][:, usable]
            trials.append((references[index][usable], references[rest][:, usable], out, inside))
    if not trials:
        return OFFLINE_A
    means = [
        np.mean(
            [_auc(log_ratios(own, others, out, a), inside) for own, others, out, inside in trials]
        )
        for a in GRID
    ]
    return GRID[int(np.argmax(means))]


def judged(
    model: str,
    attack: str,
    scores: Values,
    is_member: Mask,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> AttackResult:
    """What an attack's scores achieve: AUC, TPR at low FPR, ROC curve, class by class.

    Shapes: scores, is_member, labels (b,).
    Raises:
        VituneError: no members or no others.
    """
    members, others = scores[is_member], scores[~is_member]
    if not len(members) or not len(others):
        raise VituneError(
            f"membership: got {len(members)} members and {len(others)} others, expected some of "
            "both."
        )
    fpr, tpr, _ = roc_curve(is_member, scores)
    at = tuple(tpr_at(members, others, rate) for rate in RATES)
    rows = tuple(
        _class_row(name, scores[labels == index], is_member[labels == index], at[0])
        for index, name in enumerate(classes)
        if (labels == index).any()
    )
    return AttackResult(
        model,
        attack,
        len(members),
        len(others),
        estimated_auc(scores, is_member),
        at,
        tuple(map(float, fpr)),
        tuple(map(float, tpr)),
        rows,
    )


def tpr_at(members: Values, others: Values, rate: float) -> TprAt | None:
    """Share of members above the lowest threshold that at most rate x n of n others pass.

    None where that is less than one of the others: such a rate cannot be told from zero. By
    chance all orders are alike, so that c members and k others on top have hypergeometric odds.
    """
    allowed = math.floor(rate * len(others) + 1e-9)
    if allowed < 1:
        return None
    threshold = float(np.sort(others)[len(others) - allowed - 1])
    false, caught = int((others > threshold).sum()), int((members > threshold).sum())
    return TprAt(
        rate,
        threshold,
        clopper_pearson(false, len(others)),
        clopper_pearson(caught, len(members)),
        float(hypergeom.cdf(false, len(members) + len(others), len(others), caught + false)),
    )


def clopper_pearson(successes: int, trials: int) -> Estimate:
    """k/n with its exact 95 % interval: a one-sided bound from above and, of failures, from below.

    Source: Clopper and Pearson, Biometrika 1934, two-sided.
    """
    half = (1 - CONFIDENCE) / 2
    low = 1 - upper_bound(trials - successes, trials, half)
    return Estimate(successes / trials, low, upper_bound(successes, trials, half))


def estimated_auc(scores: Values, is_member: Mask) -> Estimate:
    """The AUC with its 95 % interval: all θ with (θ - AUC)² <= z² V(θ).

    V(θ) = θ (1 - θ) (1 + (m - 1)(1 - θ)/(2 - θ) + (n - 1) θ/(1 + θ)) / (m n). Solved for θ, the
    interval stays inside [0, 1], and has a width at an AUC of 1 too.

    Shapes: (b,) both, of them m members and n others.
    Source: V is Hanley and McNeil's (Radiology 1982); Newcombe (Statistics in Medicine 2006)
        solves it for θ, with the mean of m and n where the two stand here.
    """
    auc = _auc(scores, is_member)
    m, n = int(is_member.sum()), int((~is_member).sum())
    z = float(ndtri((1 + CONFIDENCE) / 2))

    def excess(theta: float) -> float:
        tails = 1 + (m - 1) * (1 - theta) / (2 - theta) + (n - 1) * theta / (1 + theta)
        return (theta - auc) ** 2 - z**2 * theta * (1 - theta) * tails / (m * n)

    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = 0.0 if auc <= 1e-12 else brentq(excess, 0.0, inside)
    high = 1.0 if auc >= 1 - 1e-12 else brentq(excess, inside, 1.0)
    return Estimate(auc, float(low), float(high))


def most_allowed(fpr: float, epsilon: float, delta: float) -> float:
    """The highest TPR that (ε, δ) allows: min(e^ε FPR + δ, 1 - e^-ε (1 - δ - FPR)).

    Source: Kairouz et al. (ICML 2015), the trade-off of any test between two neighbouring sets.
    """
    return min(1.0, math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr))


def _auc(scores: Values, is_member: Mask) -> float:
    return float(roc_auc_score(is_member, scores))


def _class_row(name: str, scores: Values, is_member: Mask, at: TprAt | None) -> ClassRow:
    members, others = int(is_member.sum()), int((~is_member).sum())
    auc = estimated_auc(scores, is_member) if members and others else None
    caught = None
    if members and at is not None:
        caught = clopper_pearson(int((scores[is_member] > at.threshold).sum()), members)
    return ClassRow(name, members, others, auc, caught)
