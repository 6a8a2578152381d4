"""Cross-entropy, with label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vitune.objectives.step import NoisePlan, Step, check_range


@dataclass(frozen=True)
class CrossEntropy:
    """mean_b −Σ_c q_c log softmax(f)_c, q the one-hot label mixed with the uniform distribution.

    Args:
        label_smoothing: share of the uniform distribution; 0 where labels are shares already.

    Raises:
        VituneError: smoothing outside [0, 1).
    """

    label_smoothing: float = 0.0
    needs_noise_plan = False
    needs_indices = False

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0, below=1)

    def prepare(self, plan: NoisePlan | None) -> None:
        """Nothing to prepare."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, step: Step
    ) -> dict[str, Tensor]:
        logits = step.logits(model(images)).float()
        return step.with_penalty({"cross_entropy": self.loss(logits, labels)}, labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (b, c)."""
        smoothing = self.label_smoothing if labels.dim() == 1 else 0.0
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
