"""What validation says at the end: a temperature, and whether adapting beat the solved probe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitune.ops.temperature import (
    calibrated_losses,
    expected_calibration_error,
    fit_temperature,
    paired,
)
from vitune.training.probing import Probe


@dataclass(frozen=True)
class Verdict:
    """Adapted network and solved probe on the same validation images.

    Args:
        adapted, probe: validation accuracy, in [0, 1].
        gain, gain_error: adapted - probe, and the standard error of that, image by image.
        loss_gain, loss_gain_error: by how much calibrated cross-entropy fell, and its error.
        num_images: that both were judged on.
    """

    adapted: float
    probe: float
    gain: float
    gain_error: float
    loss_gain: float
    loss_gain_error: float
    num_images: int

    @property
    def paid(self) -> bool:
        """Whether adapting was better at all; cross-entropy decides where accuracies tie."""
        return self.gain > 0 or (self.gain == 0 and self.loss_gain > 0)

    @property
    def probe_is_better(self) -> bool:
        """Whether the probe is to be preferred: cross-entropy decides within one error."""
        if abs(self.gain) > self.gain_error:
            return self.gain < 0
        return self.loss_gain < 0

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        values = {k: (v if math.isfinite(v) else None) for k, v in asdict(self).items()}
        return {**values, "paid": self.paid, "probe_is_better": self.probe_is_better}


def compare(probe: Probe, logits: Tensor, labels: Tensor) -> Verdict | None:
    """The verdict on validation; None where the probe was not judged there.

    Shapes: logits (n, c) of the adapted network; labels (n,) int64.
    """
    if len(probe.right) != len(labels) or not len(labels):
        return None
    right = (logits.argmax(1) == labels).double()
    gain, error = paired(right, torch.from_numpy(probe.right))
    losses = calibrated_losses(logits, labels)
    loss_gain, loss_error = paired(torch.from_numpy(probe.losses), losses)
    return Verdict(
        right.mean().item(), float(probe.right.mean()), gain, error, loss_gain, loss_error,
        len(labels),
    )  # fmt: skip


def calibration(
    seen: tuple[Tensor, Tensor] | None, otherwise: float | None = None
) -> dict[str, float | None]:
    """The temperature on validation with the calibration error before and after.

    Args:
        otherwise: the temperature where there is no validation; None is 1.
    """
    if seen is None or not len(seen[1]):
        return {"temperature": otherwise or 1.0, "val_ece": None, "val_ece_tempered": None}
    logits, labels = seen
    temperature = fit_temperature(logits, labels)
    return {
        "temperature": temperature,
        "val_ece": expected_calibration_error(logits, labels),
        "val_ece_tempered": expected_calibration_error(logits / temperature, labels),
    }
