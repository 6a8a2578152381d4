"""The certificate's arithmetic: against the binomial's own definition, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from vitune.errors import VituneError
from vitune.exits.bounds import images_needed, last_certified, upper_bound


@pytest.mark.parametrize(("errors", "images"), [(0, 1), (0, 148), (2, 200), (17, 300), (299, 300)])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
def test_the_bound_is_where_so_few_errors_become_unlikely(
    errors: int, images: int, delta: float
) -> None:
    bound = upper_bound(errors, images, delta)
    assert binom.cdf(errors, images, bound) == pytest.approx(delta, rel=1e-6)


def test_nothing_is_known_where_all_are_errors() -> None:
    assert upper_bound(5, 5, 0.05) == 1.0


@pytest.mark.parametrize(("risk", "needed"), [(0.01, 299), (0.02, 149), (0.05, 59)])
def test_images_needed_without_an_error(risk: float, needed: int) -> None:
    """299, 149 and 59: with one less, all being right has a probability above 5 %."""
    assert images_needed(risk, 0.05) == needed
    assert upper_bound(0, needed, 0.05) <= risk < upper_bound(0, needed - 1, 0.05)
    assert (1 - risk) ** (needed - 1) > 0.05


@pytest.mark.parametrize("errors", [1, 2, 9])
def test_images_needed_with_errors(errors: int) -> None:
    needed = images_needed(0.03, 0.05, errors)
    assert upper_bound(errors, needed, 0.05) <= 0.03 < upper_bound(errors, needed - 1, 0.05)


def test_the_sequence_stops_at_the_first_failure() -> None:
    # 100 images certify 5 % with at most one error: the third step fails, the fourth is not asked.
    assert last_certified([0, 1, 2, 0], 100, risk=0.05, delta=0.05) == 1
    assert last_certified([9, 0, 0], 100, risk=0.05, delta=0.05) is None


def test_a_path_just_too_risky_is_rarely_certified() -> None:
    """200 draws of a path whose every step has a true risk right above the wanted one."""
    generator = np.random.default_rng(0)
    risks = np.linspace(0.0505, 0.09, 30)
    wrong = 0
    for _ in range(200):
        draws = generator.random(300)
        counts = [int((draws < risk).sum()) for risk in risks]
        wrong += last_certified(counts, 300, risk=0.05, delta=0.05) is not None
    assert wrong <= binom.ppf(0.999, 200, 0.05)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: upper_bound(0, 10, 1.0), r"--delta: got 1.0, expected a number between"),
        (lambda: images_needed(0.0, 0.05), r"--risk: got 0.0, expected a number between"),
        (lambda: upper_bound(11, 10, 0.05), r"errors: got 11 of 10 images, expected"),
    ],
)
def test_numbers_out_of_range(call: object, text: str) -> None:
    with pytest.raises(VituneError, match=text):
        call()  # type: ignore[operator]
