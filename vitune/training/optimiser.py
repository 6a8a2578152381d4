"""The optimiser over exactly the trainable parameters, with or without decay by their kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import PeftConfig
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from vitune.backbones import head_names
from vitune.errors import VituneError
from vitune.methods import MethodConfig, MethodLayer, method_name


def parameter_groups(
    model: nn.Module, weight_decay: float, *, rule: str = "vitune"
) -> list[dict[str, Any]]:
    """Two groups, decayed and not, of all trainable parameters, in module order.

    Under vitune's rule a layer declares which of its parameters are not decayed; elsewhere vectors
    (biases, norm weights) are not. Under the rule "published" the method declares what its authors'
    code decays, head included. Parameters are identified by object, never by part of a name.

    Raises:
        VituneError: the rule "published" for a method without one.
    """
    decayed = _declared(model) if rule == "vitune" else _published(model)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_decayed = decayed.get(id(parameter), parameter.dim() > 1)
            groups[0 if is_decayed else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _declared(model: nn.Module) -> dict[int, bool]:
    """Whether a layer's own parameters decay, by identity."""
    return {
        id(parameter): name not in layer.no_decay
        for layer, name, _, parameter in _layer_parameters(model)
    }


def _published(model: nn.Module) -> dict[int, bool]:
    """Whether the authors' code decays a parameter, by identity."""
    configs: dict[str, PeftConfig] = getattr(model, "peft_config", {})
    found: dict[int, bool] = {}

    def ask(config: PeftConfig, place: str, name: str, parameter: Tensor) -> None:
        if isinstance(config, MethodConfig):
            answer = config.decayed_by_authors(place, name, parameter)
            if answer is not None:
                found[id(parameter)] = answer
                return
        raise VituneError(
            f"--decay-rule: got 'published' for {method_name(config)!r}, expected a "
            "method that declares its authors' rule. Leave the option out."
        )

    for layer, name, adapter, parameter in _layer_parameters(model):
        ask(layer.configs[adapter], layer.site.role, name, parameter)
    shared = getattr(getattr(model, "base_model", None), "shared_state", {})
    for adapter, state in shared.items():
        for name, parameter in state.named_parameters():
            ask(configs[adapter], "shared", name, parameter)
    for head in head_names(model):
        for name, parameter in model.get_submodule(head).named_parameters():
            if parameter.requires_grad:
                ask(next(iter(configs.values())), "head", name.rpartition(".")[2], parameter)
    return found


def _layer_parameters(model: nn.Module) -> Iterator[tuple[MethodLayer, str, str, Tensor]]:
    """Layer, parameter name, adapter and parameter of everything that methods added."""
    for module in model.modules():
        if isinstance(module, MethodLayer):
            for name in module.adapter_layer_names:
                for adapter, parameter in getattr(module, name).items():
                    yield module, name, adapter, parameter


def new_optimiser(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    kind: str = "adamw",
    momentum: float = 0.9,
    decay_rule: str = "vitune",
    head_lr: float | None = None,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter), fused if torch supports it, or SGD with momentum.

    AdamW's decay is decoupled from the gradient; SGD's is added to it (an L2 penalty).

    Args:
        head_lr: the classifier's own learning rate; None means `lr`.
    """
    groups = parameter_groups(model, weight_decay, rule=decay_rule)
    if head_lr is not None:
        groups = _with_head_rate(groups, model, head_lr)
    if kind == "sgd":
        return SGD(groups, lr=lr, momentum=momentum)
    return AdamW(groups, lr=lr, fused=True)


def _with_head_rate(
    groups: list[dict[str, Any]], model: nn.Module, head_lr: float
) -> list[dict[str, Any]]:
    """The groups with the classifier's parameters split off, at their own rate, last."""
    heads = {id(p) for name in head_names(model) for p in model.get_submodule(name).parameters()}
    parted = [
        {**group, "params": [p for p in group["params"] if (id(p) in heads) == is_head]}
        | ({"lr": head_lr} if is_head else {})
        for is_head in (False, True)
        for group in groups
    ]
    return [group for group in parted if group["params"]]


def new_schedule(
    optimiser: Optimizer,
    *,
    num_steps: int,
    warmup_steps: int,
    min_lr: float,
    warmup_lr: float = 1e-7,
) -> CosineLRScheduler:
    """Linear warm-up, then one cosine to `min_lr`, set per step: `schedule.step_update(step)`."""
    warmup_steps = min(warmup_steps, max(0, num_steps - 1))
    return CosineLRScheduler(
        optimiser,
        t_initial=max(2, num_steps - warmup_steps),  # of 1 timm warns; its one step is the same
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
