"""PACE: two passes under different noise on the adapter's changes should agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitune.errors import TrainingError
from vitune.objectives.cross_entropy import CrossEntropy
from vitune.objectives.step import DeltaNoise, NoisePlan, Step, check_range, check_word

NO_PLAN = "pace: got no noise plan, expected one. Call prepare(noise_plan(model)) first."
VARIANTS = ("full", "fast", "lazy_half")


@dataclass
class Pace:
    """CE(f₁, y) + λ · mean_b Σ_c (f₁ − f₂)², each layer giving h₀ + Z ⊙ Δh, Z ~ N(1, σ_block²).

    Z is fresh for each image, channel and pass, and the same for all tokens of an image; both
    passes see the same dropout and drop-path masks. σ_block falls linearly with depth, and the
    head, whose output counts as change, gets the last noise level. There is no noise outside
    training.

    Args:
        pace_lambda: λ; the paper's grid is .02 to 1, larger for less data.
        pace_sigma: σ; the paper's grid is .1 to 2.
        variant: "full", two passes a step. "fast", one pass: f₂ are the image's logits from the
            previous epoch, so the first epoch, also of a resumed run, has no consistency term.
            "lazy_half": plain noisy passes, but every `interval`-th step two passes over half of
            the batch.
        interval: of "lazy_half", at least 2: at 1 the other half would never be trained on.
        mean_over_classes: divide the consistency by the number of classes, so that one λ suits
            data sets of any number; the paper sums.
        label_smoothing: of the cross-entropy.

    Raises:
        VituneError: a value out of range.
        TrainingError: "fast" without image indices, or no plan was prepared.
    Source: PACE (NeurIPS 2024) section 3 and its code. Where the code's defects change results
        the paper is followed: the fast variant's memory does not start at zero logits, lazy
        steps are not every step, drop-path masks are not rescaled. The two passes run one after
        the other with the same random state, which needs no special dropout layers.
    """

    pace_lambda: float = 0.5
    pace_sigma: float = 1.0
    variant: str = "full"
    interval: int = 4
    mean_over_classes: bool = False
    label_smoothing: float = 0.0
    needs_noise_plan = True
    _plan: NoisePlan | None = field(default=None, init=False, repr=False)
    _memory: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("pace_lambda", self.pace_lambda, 0)
        check_range("pace_sigma", self.pace_sigma, 0)
        check_word("variant", self.variant, VARIANTS)
        check_range("interval", self.interval, 2)
        self._cross_entropy = CrossEntropy(self.label_smoothing)

    @property
    def needs_indices(self) -> bool:
        """Whether to remember logits by image, for the fast variant."""
        return self.variant == "fast"

    def prepare(self, plan: NoisePlan | None) -> None:
        """Set the layers that get noise.

        Raises:
            TrainingError: there is no plan.
        """
        if plan is None:
            raise TrainingError(NO_PLAN)
        self._plan = plan

    def sigma(self, position: int) -> float:
        """σ of block `position`, or of the head at the number of blocks."""
        assert self._plan is not None
        num_blocks = self._plan.num_blocks
        if self._plan.starts_at_first:
            return self.pace_sigma * (num_blocks + 1 - position) / (num_blocks + 1)
        return self.pace_sigma * (num_blocks + 1 - position) / num_blocks if position else 0.0

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, step: Step
    ) -> dict[str, Tensor]:
        if self._plan is None:
            raise TrainingError(NO_PLAN)
        is_lazy_step = step.number % self.interval == self.interval - 1
        if self.variant == "lazy_half" and is_lazy_step and len(images) > 1:
            half = self._half(len(images), step.number // self.interval)
            images, labels = images[half], labels[half]
        before = _random_state(images.device)
        first = self._noisy_pass(model, images, step)
        losses = {"cross_entropy": self._cross_entropy.loss(first, labels)}
        if self.variant == "fast":
            losses["consistency"] = self._against_memory(first, step)
        elif self.variant == "full" or is_lazy_step:
            _restore(before, images.device)
            second = self._noisy_pass(model, images, step, is_second=True)
            losses["consistency"] = self._disagreement(first, second)
        return step.with_penalty(losses, labels)

    @staticmethod
    def _half(size: int, turn: int) -> slice:
        return slice(0, size // 2) if turn % 2 == 0 else slice(size // 2, size)

    def _noisy_pass(
        self, model: nn.Module, images: Tensor, step: Step, *, is_second: bool = False
    ) -> Tensor:
        """Logits (b, c) under fresh noise, drawn apart from the stream that dropout uses."""
        assert self._plan is not None
        state = _random_state(images.device)
        seed = int(torch.randint(2**62, ()).item()) ^ (2 * step.number + is_second)
        _restore(state, images.device)
        generator = torch.Generator(images.device).manual_seed(seed)
        with self._plan.applied(self._noise(len(images), generator)):
            logits = step.logits(model(images)).float()
        return logits * _factors(logits, len(images), self.sigma(self._plan.num_blocks), generator)

    def _noise(self, num_images: int, generator: torch.Generator) -> DeltaNoise:
        def noise(block: int, delta: Tensor) -> Tensor:
            sigma = self.sigma(block)
            return delta if sigma == 0 else delta * _factors(delta, num_images, sigma, generator)

        return noise

    def _disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        squares = (first - second).square()  # (b, c)
        by_image = squares.mean(1) if self.mean_over_classes else squares.sum(1)
        return self.pace_lambda * by_image.mean()

    def _against_memory(self, logits: Tensor, step: Step) -> Tensor:
        """The disagreement with each image's previous logits; 0 for images not seen before."""
        if step.indices is None:
            raise TrainingError(
                "pace variant 'fast': got a batch without image indices, expected them. "
                "Use variant='full'."
            )
        indices = step.indices.tolist()
        known = [at for at, index in enumerate(indices) if index in self._memory]
        total = logits.sum() * 0
        if known:
            old = torch.stack([self._memory[indices[at]] for at in known]).to(logits.device)
            total = self._disagreement(logits[known], old) * (len(known) / len(indices))
        kept = logits.detach().cpu()
        self._memory.update(zip(indices, kept.unbind(), strict=True))
        return total


def _factors(delta: Tensor, num_images: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Z for changes (b·k, ..., c): one vector of channels per image, for all windows and tokens."""
    shape = (num_images, *[1] * (delta.dim() - 2), delta.shape[-1])
    noise = torch.randn(shape, generator=generator, device=delta.device, dtype=torch.float32)
    factors = (1 + sigma * noise).to(delta.dtype)
    return factors.repeat_interleave(len(delta) // num_images, dim=0)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
