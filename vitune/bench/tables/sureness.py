"""How certain differences are, in words: intervals, p values, which methods can be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from vitune.bench.tables.mixed_model import Difference, Interval
from vitune.bench.tables.ranking import Ranking
from vitune.bench.tables.study_table import Table

ABSENT = "–"
SIGNIFICANT = 0.05


def interval_text(interval: Interval | None) -> str:
    """Points: "-0.5 to +3.1"."""
    if interval is None:
        return ABSENT
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def p_text(p_value: float | None) -> str:
    """Two digits, with a floor below which such a test means nothing."""
    if p_value is None:
        return ABSENT
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def difference_text(found: Difference) -> str:
    """One sentence: which method leads, by how much, how certain that is, and over what."""
    tasks = "this task" if found.num_tasks == 1 else f"these {found.num_tasks} tasks"
    text = f"{found.first} - {found.second}: {100 * found.mean:+.2f} points on {tasks}"
    if found.on_these is not None:
        over = " and ".join(found.on_these.over)
        text += f", 95 % interval {interval_text(found.on_these)} over {over}"
        text += _tested("p", found.on_these.p_value, found.holm_p)
    if found.on_others is not None:
        text += f"; on tasks like these {interval_text(found.on_others)}"
        if found.wilcoxon_p is not None:
            text += _tested("Wilcoxon p", found.wilcoxon_p, found.wilcoxon_holm_p)
    return text


def _tested(name: str, p_value: float, holm_p: float | None) -> str:
    by_holm = "" if holm_p is None else f", {p_text(holm_p)} after Holm's correction"
    return f" ({name} {p_text(p_value)}{by_holm})"


def verdict(table: Table) -> str:
    """Which methods can be told apart after correction for the number of pairs, or ""."""
    tested = [found for found in table.differences if found.holm_p is not None]
    if not tested:
        return ""
    apart = [found for found in tested if (found.holm_p or 0.0) < SIGNIFICANT]
    level = [found for found in tested if found not in apart]
    pairs = "one pair" if len(tested) == 1 else f"{len(tested)} pairs"
    how = f"{_on(table)}, 95 %, over {_over(tested)}, Holm's correction for {pairs}"
    if not apart:
        return f"No two methods can be told apart ({how})."
    if 0 < len(level) < len(apart):
        named = "; ".join(f"{found.first} and {found.second}" for found in level)
        pairs = f"{len(apart)} of {len(tested)} pairs"
        return f"{pairs} can be told apart ({how}); these cannot: {named}."
    above: dict[str, list[str]] = {}
    for found in apart:
        better, worse = (found.first, found.second)[:: 1 if found.mean > 0 else -1]
        above.setdefault(better, []).append(worse)
    listed = "; ".join(f"{label} above {', '.join(worse)}" for label, worse in above.items())
    rest = f" The other {len(level)} pairs are not." if len(level) > 1 else ""
    return f"Told apart ({how}): {listed}.{' One pair is not.' if len(level) == 1 else rest}"


def _over(tested: Sequence[Difference]) -> str:
    """What the intervals treat as random."""
    kinds = {found.on_these.over for found in tested if found.on_these is not None}
    if len(kinds) > 1:
        return "images, and seeds if there are several"
    return " and ".join(kinds.pop())


def _on(table: Table) -> str:
    return "on this task" if len(table.tasks) == 1 else f"on these {len(table.tasks)} tasks"


def explanation(differences: Sequence[Difference]) -> list[str]:
    """What the intervals and p values of a table mean, one or two sentences for each kind."""
    tested = [found for found in differences if found.on_these is not None]
    if not tested:
        return []
    here = "these tasks" if max(found.num_tasks for found in tested) > 1 else "this task"
    told = [
        f"“{here.capitalize()}”: how the difference would come out with other draws of the "
        f"{_over(tested)}, on exactly {here}."
        " Random-effects model of the differences by seed and image; variances are not pooled over"
        " methods or tasks; t interval with Satterthwaite’s degrees of freedom."
    ]
    if any("seeds" not in found.on_these.over for found in tested if found.on_these):
        told.append(
            "Where a method has one seed, the interval tells of these very networks: another seed"
            " may lie outside."
        )
    if any(found.on_others is not None for found in differences):
        told.append(
            "“Tasks like these”: how it would come out on other tasks of which these are a sample,"
            " the wider claim. t interval over the tasks’ differences, which hold seeds and images"
            " as well. Wilcoxon’s signed-rank test goes with it."
        )
    told.append(
        "p is two-sided. After Holm’s correction the chance of any false difference in the whole"
        " column is at most 5 % where p is below 0.05." + _unreachable(differences)
    )
    return told


def _unreachable(differences: Sequence[Difference]) -> str:
    """A warning if the signed-rank test cannot become significant after correction."""
    signed = [found for found in differences if found.wilcoxon_p is not None]
    if not signed:
        return ""
    least = len(signed) * 2 / 2 ** max(found.num_tasks for found in signed)
    if least < SIGNIFICANT:
        return ""
    return (
        f" With {len(signed)} pairs and so few tasks Wilcoxon’s p cannot come below"
        f" {p_text(min(1.0, least))} after correction, whatever the results."
    )


def ranking_text(found: Ranking) -> str:
    """The ranks in one or two sentences, and which of them cannot be told apart."""
    ranks = ", ".join(f"{label} {rank:.2f}" for label, rank in found.ranks.items())
    text = (
        f"Mean ranks over {found.num_tasks} tasks: {ranks}. Friedman p {p_text(found.friedman_p)}; "
        f"critical difference {found.critical_difference:.2f} (Nemenyi, 5 %)."
    )
    if not found.is_ordered:
        return f"{text} No order of the methods is shown."
    groups = "; ".join(", ".join(group) for group in found.groups)
    return f"{text} Cannot be told apart: {groups}." if groups else f"{text} All can be told apart."
