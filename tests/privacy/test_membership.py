"""Attacks on membership: known answers by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm

from vitune.errors import VituneError
from vitune.privacy import MembershipFound, in_words
from vitune.privacy.membership import (
    GRID,
    OFFLINE_A,
    chosen_a,
    clopper_pearson,
    dominated,
    estimated_auc,
    judged,
    log_confidences,
    log_ratios,
    most_allowed,
    tpr_at,
)
from vitune.privacy.reference_runs import drawn

RNG = np.random.default_rng
CLASSES = tuple("abcdefghijklmnopqrst")


def two_normals(shift: float, members: int, others: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = RNG(seed)
    scores = np.concatenate([rng.normal(shift, 1, members), rng.normal(0, 1, others)])
    return scores, np.arange(members + others) < members


def test_two_normals_have_the_textbook_curve() -> None:
    scores, inside = two_normals(1.5, 40_000, 40_000, 0)
    labels = np.zeros(len(scores), np.int64)
    found = judged("m", "loss", scores, inside, labels, ("only",))
    assert found.auc.value == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.005)
    for at, rate in zip(found.at, (0.01, 0.001), strict=True):
        assert at is not None and at.rate == rate
        assert at.fpr.value == pytest.approx(rate)
        assert at.tpr.value == pytest.approx(norm.sf(norm.isf(rate) - 1.5), abs=0.012)
        assert at.tpr.low < at.tpr.value < at.tpr.high
    assert found.fpr[0] == found.tpr[0] == 0 and found.fpr[-1] == found.tpr[-1] == 1
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(found.auc.value)
    (row,) = found.per_class
    assert row.auc == found.auc and row.caught == found.at[0].tpr


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_intervals_hold_the_truth_as_often_as_they_say(shift: float) -> None:
    draws, held_auc, held_tpr = 200, 0, 0
    for seed in range(draws):
        scores, inside = two_normals(shift, 50, 200, seed)
        auc = estimated_auc(scores, inside)
        held_auc += auc.low <= norm.cdf(shift / np.sqrt(2)) <= auc.high
        at = tpr_at(scores[inside], scores[~inside], 0.01)
        assert at is not None
        held_tpr += at.tpr.low <= norm.sf(at.threshold - shift) <= at.tpr.high
    assert held_auc >= 0.92 * draws and held_tpr >= 0.93 * draws


def test_without_a_leak_members_are_not_told_from_others() -> None:
    seen = []
    for seed in range(400):
        scores, inside = two_normals(0.0, 200, 1000, seed)
        at = tpr_at(scores[inside], scores[~inside], 0.01)
        assert at is not None
        seen.append(at.by_chance)
    held = [sum(one <= level for one in seen) / 400 for level in (0.05, 0.5)]
    assert held[0] <= 0.07 and 0.3 <= held[1] <= 0.57
    # Three members and one other in the four first of 103 places.
    at = tpr_at(np.array([5.0, 6, 7]), np.arange(-100.0, 0), 0.01)
    assert at is not None and at.fpr.value == 0.01
    orders = [103 * 102 * 101 * 100 / 24, 3 * 2 * 1 * 100 / 6]
    assert at.by_chance == pytest.approx(orders[1] / orders[0])


def test_a_rate_below_one_of_the_others_has_no_answer() -> None:
    members = np.linspace(0, 1, 50)
    assert tpr_at(members, np.linspace(0, 1, 99), 0.01) is None
    found = tpr_at(members, np.linspace(0, 1, 100), 0.01)
    assert found is not None and found.fpr.value == 0.01
    assert tpr_at(members, np.linspace(0, 1, 999), 0.001) is None
    assert tpr_at(members, np.linspace(0, 1, 1000), 0.001) is not None


def test_ties_are_never_counted_as_recognised() -> None:
    found = tpr_at(np.ones(20), np.ones(200), 0.01)
    assert found is not None and found.tpr.value == 0 and found.fpr.value == 0


def test_perfect_and_reversed_scores_still_have_an_interval() -> None:
    inside = np.arange(60) < 20
    perfect = estimated_auc(inside.astype(float), inside)
    wrong = estimated_auc(-inside.astype(float), inside)
    assert perfect.value == perfect.high == 1 and 0.8 < perfect.low < 0.97
    assert wrong.value == wrong.low == 0 and wrong.high < 0.2
    assert clopper_pearson(0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert clopper_pearson(10, 10).low == pytest.approx(0.025**0.1)
    with pytest.raises(VituneError, match="got 3 members and 0 others"):
        judged("m", "loss", np.zeros(3), np.ones(3, bool), np.zeros(3, np.int64), ("a",))


def test_loss_ranks_as_the_scaled_confidence_does() -> None:
    logits = RNG(0).normal(0, 4, (300, 5))
    labels = RNG(1).integers(0, 5, 300)
    found = log_confidences(logits, labels)
    p = torch.tensor(logits).softmax(1).numpy()[np.arange(300), labels]
    np.testing.assert_allclose(found, np.log(p))
    assert np.array_equal(np.argsort(found), np.argsort(np.log(p / (1 - p))))


def test_ratios_are_those_of_the_formula() -> None:
    target = np.log([0.9, 0.5])
    references = np.log([[0.2, 0.5], [0.4, 0.7], [0.9, 0.1]])
    was_out = np.array([[True, True], [True, False], [False, True]])
    found = log_ratios(target, references, was_out, 0.3)
    wanted = [0.9 / (0.65 * 0.3 + 0.35), 0.5 / (0.65 * 0.3 + 0.35)]
    np.testing.assert_allclose(np.exp(found), wanted)
    np.testing.assert_allclose(np.exp(log_ratios(target, references, was_out, 1.0))[0], 3.0)
    with pytest.raises(VituneError, match="got 1 images that all of them trained on"):
        log_ratios(target, references, np.array([[True, False]] * 3), 0.3)


def test_the_score_against_a_population_ranks_as_the_ratio() -> None:
    ratios, population = RNG(0).normal(0, 1, 200), RNG(1).normal(0, 1, 500)
    for gamma in (1.0, 2.0):
        scores = dominated(ratios, population, gamma)
        compared = np.exp(ratios[:, None] - population[None]) >= gamma
        np.testing.assert_allclose(scores, compared.mean(1))
        assert (np.diff(scores[np.argsort(ratios)]) >= 0).all()


def world(num_runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log confidences of runs on images of very different difficulty, and who trained on what.

    Being trained on adds 1.5 to an image's logit; training noise has a deviation of 0.5.
    """
    rng = RNG(seed)
    difficulty = rng.normal(0, 3, 2000)
    trained = rng.random((num_runs, 2000)) < 0.5
    logits = difficulty + 1.5 * trained + rng.normal(0, 0.5, trained.shape)
    return np.log(expit(logits)), trained


def test_references_see_through_difficulty() -> None:
    confidences, trained = world(9, 0)
    usable = ~trained[1:].all(0)
    inside, out = trained[0][usable], ~trained[1:][:, usable]
    by_loss = estimated_auc(confidences[0][usable], inside)
    a = chosen_a(confidences[1:], trained[1:])
    ratios = log_ratios(confidences[0][usable], confidences[1:][:, usable], out, a)
    by_rmia = estimated_auc(ratios, inside)
    # Loss alone: Φ(1.5 / sqrt(2 (9 + 0.25))), up to the shape of the mixture.
    assert by_loss.value == pytest.approx(norm.cdf(1.5 / np.sqrt(18.5)), abs=0.03)
    assert by_rmia.value > 0.85
    assert a in GRID and a >= 0.8  # here confidence rises little where it is low
    fixed = log_ratios(confidences[0][usable], confidences[1:][:, usable], out, OFFLINE_A)
    assert by_rmia.value > estimated_auc(fixed, inside).value


def test_two_halves_leave_nothing_to_choose_a_on() -> None:
    trained = np.array([[True] * 5 + [False] * 5, [False] * 5 + [True] * 5])
    assert chosen_a(np.zeros((2, 10)), trained) == OFFLINE_A


def test_what_epsilon_allows() -> None:
    assert most_allowed(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert most_allowed(0.01, 1.0, 1e-5) == pytest.approx(np.e * 0.01 + 1e-5)
    assert most_allowed(0.5, 2.0, 0.0) == pytest.approx(1 - np.exp(-2) * 0.5)
    assert most_allowed(1.0, 3.0, 1e-5) == 1.0
    rng = RNG(0)  # the Laplace mechanism is (1, 0) private, and meets the bound in its tail
    members, others = rng.laplace(1, 1, 200_000), rng.laplace(0, 1, 200_000)
    for rate in (0.01, 0.001):
        found = tpr_at(members, others, rate)
        assert found is not None
        bound = most_allowed(rate, 1.0, 0.0)
        assert found.tpr.low < bound and found.tpr.value == pytest.approx(bound, rel=0.12)


def test_reference_runs_share_classes_fairly_and_pairs_share_nothing() -> None:
    labels = RNG(0).choice(4, 203, p=[0.5, 0.3, 0.15, 0.05])
    chosen = drawn(labels, 60, 5, seed=3)
    assert chosen.sum(1).tolist() == [60] * 5
    assert not (chosen[0] & chosen[1]).any() and not (chosen[2] & chosen[3]).any()
    assert (~chosen).any(0).all()
    for run in chosen:
        counts = np.bincount(labels[run], minlength=4)
        assert (np.abs(counts - np.bincount(labels) * 60 / 203) <= 1).all()
    assert np.array_equal(drawn(labels, 60, 2, seed=3), chosen[:2])
    assert not np.array_equal(drawn(labels, 60, 2, seed=4), chosen[:2])


def judgement(scores: np.ndarray, inside: np.ndarray) -> str:
    """What is said of scores."""
    one = judged("m", "loss", scores, inside, np.zeros(len(scores), np.int64), ("a",))
    found = MembershipFound("run", "m", 1, 1, 1, 0, 0, {}, None, (one,), None, (), (), ())
    return in_words(found).replace("\N{NO-BREAK SPACE}", " ")


def test_the_sentence_says_no_more_than_the_figures() -> None:
    inside = np.arange(400) < 200
    nothing = judgement(RNG(0).normal(0, 1, 400), inside)
    assert "are recognised, as many as chance may give. A member scores higher" in nothing
    ties = judgement(np.where(inside, 1.0, 0.0), inside)
    assert "the members are recognised. A member scores higher than another image in 100 %" in ties
    perfect = judgement(np.arange(400.0)[::-1], inside)
    assert "recognised, 100.0 times as many as by chance. A member" in perfect
    few = judgement(np.arange(40.0), np.arange(40) < 20)
    assert few.startswith("A member scores higher than another image in 0 % of all pairs")
