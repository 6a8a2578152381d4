"""AdamW over exactly the trainable parameters, decayed or not by what each parameter is."""

from __future__ import annotations

from typing import Any

from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer

from vitune.methods import MethodLayer

WARMUP_LR = 1e-7


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, decayed and not, of all trainable parameters, in module order.

    A vitune layer says which of its parameters are not decayed; elsewhere vectors (biases, norm
    weights) are not. Parameters are told apart by identity, never by a part of their name.
    """
    declared = {
        id(parameter): name not in module.no_decay
        for module in model.modules()
        if isinstance(module, MethodLayer)
        for name in module.adapter_layer_names
        for parameter in getattr(module, name).values()
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_decayed = declared.get(id(parameter), parameter.dim() > 1)
            groups[0 if is_decayed else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def new_optimiser(model: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW (Loshchilov and Hutter) over `parameter_groups`, its update fused where torch can."""
    return AdamW(parameter_groups(model, weight_decay), lr=lr, fused=True)


def new_schedule(
    optimiser: Optimizer, *, num_steps: int, warmup_steps: int, min_lr: float
) -> CosineLRScheduler:
    """Linear warm-up, then one cosine to `min_lr`, set a step: `schedule.step_update(step)`."""
    warmup_steps = min(warmup_steps, max(0, num_steps - 1))
    return CosineLRScheduler(
        optimiser,
        t_initial=max(1, num_steps - warmup_steps),
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=WARMUP_LR,
        warmup_prefix=True,
        t_in_epochs=False,
    )
