"""What an audit of membership found, and what must be said beside its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vitune.privacy.membership import RATES, AttackResult, Estimate, most_allowed
from vitune.report import percent
from vitune.runs import PrivacySpent

UNLIKELY = 0.05
"""Probability below which a count of recognised members is not put down to chance."""


@dataclass(frozen=True)
class Exposed:
    """A member that stands out.

    Args:
        confidence: of the run in the image's class.
        outside: the same of reference runs without the image, their mean; None without such runs.
        dominates: share of the others that stand out no more: RMIA's score.
    """

    path: str
    label: str
    confidence: float
    outside: float | None
    dominates: float


@dataclass(frozen=True)
class MembershipFound:
    """What an audit found.

    Args:
        method: the run's.
        num_trained: images that trained the run, of which `num_members` are looked at.
        reference_size: images that each reference run trained on; 0 without such runs.
        offline_a: RMIA's a by model.
        blind: AUC of the run's reference runs alone, which know nothing of membership; 0.5 where
            members and others are of one kind. None without reference runs.
        results: two attacks per model, the run first; one without reference runs.
        privacy: what the run spent; None without differential privacy.
        allowed: the highest TPR that this allows at each of `rates`.
        exposed: the members that the last attack on the run recognises first.
        notes: what a reader must know beside the figures.
        probes: models that ended as the solved probe they started from.
    """

    run: str
    method: str
    num_trained: int
    num_members: int
    num_others: int
    num_references: int
    reference_size: int
    offline_a: dict[str, float]
    blind: Estimate | None
    results: tuple[AttackResult, ...]
    privacy: PrivacySpent | None
    allowed: tuple[float, ...]
    exposed: tuple[Exposed, ...]
    notes: tuple[str, ...]
    rates: tuple[float, ...] = RATES
    probes: tuple[str, ...] = ()

    @property
    def strongest(self) -> AttackResult:
        """RMIA on the run itself; the attack by loss where there are no reference runs."""
        return [one for one in self.results if one.model == self.results[0].model][-1]

    def as_dict(self) -> dict[str, Any]:
        """The findings for JSON."""
        return asdict(self)


def remarks(found: MembershipFound) -> tuple[str, ...]:
    """What limits the figures, in sentences."""
    told = []
    for rate in found.rates:
        needed = round(1 / rate)
        if found.num_others < needed:
            told.append(
                f"a false positive rate of {percent(rate, 0)} cannot be resolved with "
                f"{found.num_others:,} others: it takes {needed:,}"
            )
    if found.num_members < found.num_trained:
        told.append(
            f"{found.num_members:,} of the run's {found.num_trained:,} training images are looked "
            "at, and the methods beside it train on these alone"
        )
    if 0 < found.reference_size < found.num_trained:
        told.append(
            f"the reference runs train on {found.reference_size:,} images, half of all there are; "
            f"the run trained on {found.num_trained:,}. More --others make the attack stronger"
        )
    if found.probes:
        told.append(
            f"{', '.join(found.probes)}: validation kept nothing of what training changed, so the "
            "figures are those of the solved linear probe"
        )
    blind = found.blind
    if blind is not None and not blind.low <= 0.5 <= blind.high:
        told.append(
            "members and others differ by more than membership: runs that saw neither tell them "
            f"apart with an AUC of {blind.value:.2f} ({blind.low:.2f} to {blind.high:.2f})"
        )
    if found.privacy is not None:
        told += _of_privacy(found, found.privacy)
    return tuple(told)


def _of_privacy(found: MembershipFound, spent: PrivacySpent) -> list[str]:
    """What the guarantee allows, and where an attack passes it beyond chance."""
    shares = ", ".join(
        f"{percent(share)} at {percent(rate, 0)} FPR"
        for rate, share in zip(found.rates, found.allowed, strict=True)
    )
    told = [
        f"differential privacy, ε = {spent.epsilon:.3g} and δ = {spent.delta:g}, allows no attack "
        f"a TPR above {shares}. The methods beside the run train without privacy"
    ]
    for one in found.results:
        if one.model != found.results[0].model:
            continue
        for at in filter(None, one.at):
            if at.tpr.low > most_allowed(at.fpr.high, spent.epsilon, spent.delta):
                told.append(
                    f"{one.attack} passes what ε and δ allow at {percent(at.rate, 0)} FPR, beyond "
                    "chance: members may have been in the data more than once"
                )
    return told


def in_words(found: MembershipFound) -> str:
    """What the strongest attack on the run achieves, at low FPR and over all thresholds."""
    one = found.strongest
    area = (
        f"A member scores higher than another image in {percent(one.auc.value, 0)} of all pairs "
        f"({percent(one.auc.low, 0)} to {percent(one.auc.high, 0)}; 50 % is chance)."
    )
    at = one.at[0]
    if at is None:
        return area
    caught = f"{percent(at.tpr.value)} ({percent(at.tpr.low)} to {percent(at.tpr.high)})"
    told = (
        f"At the threshold that {percent(at.fpr.value)} of the others pass, {caught} of the "
        "members are recognised"
    )
    if at.by_chance >= UNLIKELY:
        return f"{told}, as many as chance may give. {area}"
    if not at.fpr.value:
        return f"{told}. {area}"
    return f"{told}, {at.tpr.value / at.fpr.value:.1f} times as many as by chance. {area}"
