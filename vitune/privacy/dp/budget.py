"""How much noise a budget (ε, δ) asks for, and what has been spent: Opacus' RDP accountant."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from vitune.errors import VituneError
from vitune.extras import require_extra

MECHANISM = "rdp"
HIGHEST_NOISE = 1e5
"""Noise so large that more of it no longer lowers the accountant's ε."""
HIGHEST_ORDER = 62
"""The accountant's highest Rényi order, less one."""


def require_opacus() -> None:
    """Check that Opacus is installed.

    Raises:
        VituneError: it is not.
    """
    require_extra("--dp-epsilon", "privacy", "opacus")


@dataclass
class Budget:
    """The plan of a private run, and its accountant.

    Args:
        epsilon, delta: what may be spent in all.
        clip: the norm that each image's gradient is cut to.
        sample_rate: probability of an image to be in a batch.
        steps: of the whole run.
        spent: the accountant's history so far: (noise multiplier, sampling rate, steps) each.

    Raises:
        VituneError: no noise reaches ε with so many steps; the text names the least ε that can be.
    Source: Abadi et al. (CCS 2016); Mironov et al. (2019) for the sampled Gaussian mechanism.
    """

    epsilon: float
    delta: float
    clip: float
    sample_rate: float
    steps: int
    spent: list[tuple[float, float, int]] = field(default_factory=list)
    noise_multiplier: float = field(init=False)

    def __post_init__(self) -> None:
        from opacus.accountants.utils import get_noise_multiplier

        # What the accountant cannot go below comes from δ alone; above that it need not be asked.
        floor = 2 * math.log(1 / self.delta) / HIGHEST_ORDER
        if self.epsilon < floor and self.epsilon <= (least := self._least()):
            raise VituneError(
                f"--dp-epsilon: got {self.epsilon:g}, expected more than {least:.3g}, the least "
                f"that {self.steps:,} steps at a sampling rate of {self.sample_rate:.3g} and delta "
                f"{self.delta:g} can show. Raise it, or give fewer --epochs or a smaller batch."
            )
        with _quiet():
            self.noise_multiplier = get_noise_multiplier(
                target_epsilon=self.epsilon,
                target_delta=self.delta,
                sample_rate=self.sample_rate,
                steps=self.steps,
                accountant=MECHANISM,
                epsilon_tolerance=min(0.01, self.epsilon / 100),
            )

    def step(self) -> None:
        """Account for one step, whatever its batch held."""
        accountant = _accountant(self.spent)
        accountant.step(noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate)
        self.spent = [tuple(entry) for entry in accountant.history]

    @property
    def epsilon_spent(self) -> float:
        """ε so far, at the budget's δ."""
        return self._epsilon_of(self.spent)

    @property
    def steps_spent(self) -> int:
        """Steps accounted for."""
        return sum(count for *_, count in self.spent)

    def _least(self) -> float:
        return self._epsilon_of([(HIGHEST_NOISE, self.sample_rate, self.steps)])

    def _epsilon_of(self, history: list[tuple[float, float, int]]) -> float:
        if not history:
            return 0.0
        with _quiet():
            return float(_accountant(history).get_epsilon(self.delta))


def _accountant(history: list[tuple[float, float, int]]) -> Any:
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism=MECHANISM)
    accountant.history = [tuple(entry) for entry in history]
    return accountant


def _quiet() -> warnings.catch_warnings[None]:
    """Opacus warns where the best order is the last it tries; ε is valid all the same."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
