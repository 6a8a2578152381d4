"""Training with differential privacy: what it excludes, and the parts that the loop needs."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch.optim import Optimizer

from vitune.data import Split
from vitune.errors import VituneError
from vitune.methods import MethodLayer, get_method
from vitune.privacy.dp import Budget, PoissonBatches, PrivateStep, require_opacus
from vitune.runs import PrivacySpent
from vitune.training.train_config import TrainConfig

REFUSED = {
    "mixup": (0.0, "it mixes images, so one image affects the gradients of others"),
    "cutmix": (0.0, "it mixes images, so one image affects the gradients of others"),
    "objective": ("cross_entropy", "only its per-image gradient is implemented"),
    "objective_args": ({}, "only the per-image gradient of plain cross-entropy is implemented"),
    "accumulation_steps": (1, "a step is one Poisson batch"),
    "clip_grad": (None, "--dp-clip already clips each image's gradient"),
    "checkpointing": (False, "per-image gradients need each layer to run once"),
}
"""Settings that a private run restricts: the only allowed value, and why."""


SETTLED: dict[str, Any] = {
    "start": "plain",
    "choose_best": False,
    "select": "last",
    "augment": "none",
    "precision": "fp32",
}
"""Settings that are otherwise chosen by looking at the images, which would not be private."""
OPEN = (None, "auto")


def with_privacy(config: TrainConfig) -> TrainConfig:
    """The settings with those that differential privacy fixes; incompatible ones are refused.

    Raises:
        VituneError: such a setting, a method that is solved, or no Opacus.
    """
    if config.dp_epsilon is None:
        return config
    require_opacus()
    method = get_method(config.method)
    if method.solved:
        remedy = f"Use --method {method.stepped}." if method.stepped else "Choose another method."
        raise VituneError(
            f"--dp-epsilon: got method {config.method!r}, which is solved from all images at once, "
            f"expected one that takes steps. {remedy}"
        )
    for name, (only, reason) in REFUSED.items():
        if getattr(config, name) != only:
            raise VituneError(
                f"--{name.replace('_', '-')}: got {getattr(config, name)!r} with --dp-epsilon, "
                f"expected {only!r}: {reason}. Leave it out."
            )
    for name in ("start", "choose_best", "precision"):
        value = getattr(config, name)
        if value not in (*OPEN, SETTLED[name]):
            raise VituneError(
                f"--{name.replace('_', '-')}: got {value!r} with --dp-epsilon, expected "
                f"{SETTLED[name]!r}. Leave it out."
            )
    open_ones = {name: v for name, v in SETTLED.items() if getattr(config, name) in OPEN}
    return config.model_copy(update=open_ones)


def private_parts(
    model: PeftModel,
    train: Split,
    optimiser: Optimizer,
    config: TrainConfig,
    accelerator: Accelerator,
    image_size: tuple[int, int],
) -> tuple[PoissonBatches, PrivateStep]:
    """Batches and steps of a private run.

    Raises:
        VituneError: several processes, a method that adds to the loss or has no gradients per
            image, or an ε that the steps do not allow.
    """
    assert config.dp_epsilon is not None
    if accelerator.num_processes > 1:
        raise VituneError(
            f"--dp-epsilon: got {accelerator.num_processes} processes, expected one. Start without "
            "a launcher."
        )
    layers = [layer for layer in model.modules() if isinstance(layer, MethodLayer)]
    if any(type(layer).penalty is not MethodLayer.penalty for layer in layers):
        raise VituneError(
            f"--dp-epsilon: got method {config.method!r}, which adds a term to the loss, expected "
            "one without. See 'vitune methods'."
        )
    rate = config.batch_size / len(train)
    steps = max(1, round(1 / rate))
    budget = Budget(config.dp_epsilon, config.dp_delta, config.dp_clip, rate, steps * config.epochs)
    step = PrivateStep(
        model, optimiser, budget, config.batch_size, label_smoothing=config.label_smoothing
    )
    step.gradients.check(image_size)
    return PoissonBatches(train, rate, steps), step


def privacy_spent(step: PrivateStep | None) -> PrivacySpent | None:
    """What a run's summary says about privacy; None without differential privacy."""
    if step is None:
        return None
    budget = step.budget
    return PrivacySpent(
        epsilon=budget.epsilon_spent,
        delta=budget.delta,
        sample_rate=budget.sample_rate,
        steps=budget.steps_spent,
        noise_multiplier=budget.noise_multiplier,
        clip=budget.clip,
    )
