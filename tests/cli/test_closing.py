"""What `vitune train` says of the adapted network and the solved probe."""

from __future__ import annotations

import pytest

from vitune.cli._closing import _compared
from vitune.runs import Verdict


def verdict(gain: float, error: float | None, loss_gain: float) -> Verdict:
    return Verdict(0.75, 0.75 - gain, gain, error, loss_gain, 0.01, 40)


@pytest.mark.parametrize(
    ("gain", "error", "loss_gain", "told"),
    [
        (0.10, 0.03, 0.2, "adapting helped: 75.0 % against 65.0 %"),
        (0.10, 0.03, -0.2, "adapting helped: 75.0 % against 65.0 %"),
        (-0.10, 0.03, 0.2, "adapting did not help: 75.0 % against 85.0 %"),
        (-0.025, 0.03, 0.12, "adapting helped, by cross-entropy: 75.0 % against 77.5 %"),
        (0.025, 0.03, -0.12, "adapting did not help, by cross-entropy: 75.0 % against 72.5 %"),
        (0.0, 0.0, 0.12, "adapting helped, by cross-entropy: 75.0 % against 75.0 %"),
        (0.5, None, 0.1, "adapting helped, by cross-entropy: 75.0 % against 25.0 %"),
        (0.0, 0.0, 0.0, "adapting did not help: 75.0 % against 75.0 %"),
    ],
)
def test_the_words_agree_with_what_is_kept(
    gain: float, error: float | None, loss_gain: float, told: str
) -> None:
    found = verdict(gain, error, loss_gain)
    said = _compared(found, False, "runs/mine")
    assert said.startswith(told)
    assert found.paid == ("helped" in told)
    assert not (found.paid and found.probe_is_better)
    chose = _compared(found, True, "runs/mine")
    assert chose.startswith("the probe was chosen") and chose.endswith("runs/mine/adapted")
    assert ("validation, by cross-entropy:" in chose) == ("cross-entropy" in told)
    if "cross-entropy" in told:
        lower = "lower" if loss_gain > 0 else "higher"
        assert f"calibrated cross-entropy {abs(loss_gain):.3f} {lower}" in said
