"""Thresholds: the certificate on recorded predictions of a real run, budgets, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from vitune.errors import VituneError
from vitune.exits import NEVER, Recorded, Thresholds, certify, errors, for_budget, leaving_exit
from vitune.exits.bounds import last_certified
from vitune.exits.thresholds import DEFINITIONS, DOUBTS, path_errors

RUN = Path(__file__).with_name("recorded_digits.npz")
"""Logits of exits 2, 4 and the last of an RLRR run on demo:digits, 1,197 held-out images.

Made by: python studies/exit_certificates.py record RUN2 --data 'demo:digits?train=600'
"""


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with np.load(RUN) as arrays:
        logits = torch.from_numpy(arrays["logits"]).float()
        return Recorded(logits, torch.from_numpy(arrays["labels"]).long())


@pytest.mark.parametrize(
    "risk", [0.02, *(pytest.param(risk, marks=pytest.mark.slow) for risk in (0.05, 0.1))]
)
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_certificates_are_wrong_as_rarely_as_they_say(
    recorded: Recorded, risk: float, definition: str
) -> None:
    """200 calibrations on images drawn from the predictions, whose risk is therefore known."""
    steps = path_errors(recorded, definition).numpy()
    true = steps.mean(1)
    generator = np.random.default_rng(7)
    wrong = 0
    for draw in range(200):
        chosen = generator.integers(0, len(recorded), 600)
        step = last_certified(steps[:, chosen].sum(1).tolist(), 600, risk=risk, delta=0.05)
        wrong += step is not None and true[step] > risk
        if draw < 3:
            values, proof = certify(
                recorded.subset(torch.from_numpy(chosen)),
                risk=risk, delta=0.05, definition=definition,
            )  # fmt: skip
            assert step is not None and values == (1 - DOUBTS[step],) * 2
            assert proof.num_errors == steps[step, chosen].sum() and proof.num_images == 600
    assert wrong <= binom.ppf(0.999, 200, 0.05)


def test_one_step_bolder_would_break_the_promise(recorded: Recorded) -> None:
    """The simulation can fail: a rule that takes the first uncertified step does fail it."""
    steps = path_errors(recorded, "disagreement").numpy()
    true, generator, wrong = steps.mean(1), np.random.default_rng(7), 0
    for _ in range(200):
        counts = steps[:, generator.integers(0, len(recorded), 600)].mean(1)
        wrong += true[int((counts <= 0.02).nonzero()[0][-1])] > 0.02
    assert wrong > binom.ppf(0.999, 200, 0.05)


def test_errors_by_hand() -> None:
    logits = torch.tensor(
        [
            [[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 0.1]],
            [[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 0.0]],
        ]
    )
    known = Recorded(logits, torch.tensor([0, 1, 1, 0]))
    assert leaving_exit(known.confidence, (0.9,)).tolist() == [0, 0, 0, 1]
    assert errors(known, (0.9,), "disagreement").tolist() == [False, True, True, False]
    assert errors(known, (0.9,), "error-gap").tolist() == [False, True, False, False]
    assert not errors(known, (NEVER,), "disagreement").any()


def test_too_few_images_names_the_number(recorded: Recorded) -> None:
    few = recorded.subset(torch.arange(148))
    with pytest.raises(VituneError, match=r"got 148 images, expected at least 149 .* --risk 0.020"):
        certify(few, risk=0.02, delta=0.05, definition="disagreement")


def test_one_class_is_refused(recorded: Recorded) -> None:
    alone = Recorded(recorded.logits, torch.zeros_like(recorded.labels))
    with pytest.raises(VituneError, match=r"--data: got images of one class"):
        certify(alone, risk=0.02, delta=0.05, definition="disagreement")


def test_an_unknown_definition(recorded: Recorded) -> None:
    with pytest.raises(VituneError, match=r"--of: got 'gap', expected one of .* error-gap"):
        certify(recorded, risk=0.02, delta=0.05, definition="gap")


def test_nothing_certified_means_nobody_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 40 * torch.randn(2, 300, 4, generator=generator)  # sure, and unlike each other
    noise = Recorded(logits, torch.randint(4, (300,), generator=generator))
    values, proof = certify(noise, risk=0.05, delta=0.05, definition="disagreement")
    assert values == (NEVER,) and proof.num_errors == 0


@pytest.mark.parametrize("budget", [0.4, 0.6, 0.9])
def test_a_budget_is_kept_and_used(recorded: Recorded, budget: float) -> None:
    costs = [0.34, 0.67, 1.0]
    values = for_budget(recorded, costs, budget)
    left = leaving_exit(recorded.confidence, values)
    spent = torch.tensor(costs)[left].mean().item()
    assert budget - 0.03 < spent <= budget + 1e-6


def test_budgets_that_cannot_be() -> None:
    some = Recorded(torch.zeros(2, 3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(VituneError, match=r"--budget: got 0.2, expected at least 0.340"):
        for_budget(some, [0.34, 1.0], 0.2)
    with pytest.raises(VituneError, match=r"--budget: got 1.5, expected a number between 0 and 1"):
        for_budget(some, [0.34, 1.0], 1.5)


def test_thresholds_are_written_and_read(recorded: Recorded, tmp_path: Path) -> None:
    values, proof = certify(recorded, risk=0.05, delta=0.05, definition="error-gap")
    file = tmp_path / "thresholds.json"
    written = Thresholds((2, 4), values, "abc", proof, data="x", expected={"cost": 0.5})
    written.write(file)
    assert Thresholds.read(file) == written
    for damage in ("{}", "no json", '{"format": 9}', "[]"):
        file.write_text(damage)
        with pytest.raises(VituneError, match=r"got damaged thresholds .* Calibrate again"):
            Thresholds.read(file)
