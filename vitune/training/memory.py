"""The memory that a run needs, estimated before it starts: an error message, not a kill."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitune.adapters import inject
from vitune.backbones import Backbone
from vitune.backbones.rehearsal import rehearsed
from vitune.errors import OutOfMemoryError
from vitune.machine import available_memory_mib
from vitune.methods import get_method
from vitune.training.train_config import TrainConfig

STATES_PER_PARAMETER = 4
"""A trained parameter with its gradient and AdamW's two moments."""

RARELY_MORE = 2000
"""A step keeps at most this multiple of its images' bytes; with that free it is not rehearsed."""

LEAN_PART, HALF_PART = 0.6, 0.6
"""The share of the kept bytes that remains with the lean step and 16-bit numbers. For RLRR on
ViT-B/16 at batch 8 the rehearsal counts 902 MiB; docs/performance-log.md has peaks of 570, and of
347 in bf16."""

_MIB = 2**20


def require_memory(backbone: Backbone, config: TrainConfig, device: torch.device) -> None:
    """Refuse a run whose adapter and first step cannot fit into free memory.

    The estimate is a lower bound: frozen weights are already loaded, and what a step keeps for its
    backward pass is counted on tensors without values.

    Raises:
        OutOfMemoryError: the text names what needs the most.
    """
    free_mib = _free_mib(device)
    batch, size = config.batch_size, backbone.preprocessing.image_size
    images_mib = 4 * 3 * batch * size[0] * size[1] / _MIB
    if not config.method_args and images_mib * RARELY_MORE < free_mib:
        return
    blueprint = copy.deepcopy(backbone.model).to("meta")
    with torch.device("meta"):
        adapted = inject(
            blueprint, get_method(config.method).configure(blueprint, config.method_args)
        )
    trained = sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)
    adapter_mib = STATES_PER_PARAMETER * trained / _MIB
    if adapter_mib > free_mib:
        raise OutOfMemoryError(
            f"memory: got a method that trains {_gib(trained / _MIB)} of parameters and needs "
            f"{_gib(adapter_mib)} for them, expected at most the {_gib(free_mib)} that are free. "
            "Lower the --method-arg that makes the adapter so large."
        )
    if images_mib * RARELY_MORE < free_mib:
        return
    needed_mib = images_mib + adapter_mib
    if needed_mib <= free_mib:  # the rehearsal has no numbers for absurd sizes
        needed_mib += _step_mib(adapted, config, batch, size) * _tokens_part(config)
    if needed_mib > free_mib:
        raise OutOfMemoryError(
            f"memory: got steps of {batch} images of {size[0]} x {size[1]} pixels, which need "
            f"{_gib(needed_mib)}, expected at most the {_gib(free_mib)} that are free. Lower "
            "--batch-size or --image-size, or add --checkpointing."
        )


def _step_mib(model: nn.Module, config: TrainConfig, batch: int, size: tuple[int, int]) -> float:
    """The least that one step keeps for its backward pass; 0 if it cannot be rehearsed."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    try:
        with rehearsed(model) as played:
            own = {p.untyped_storage()._cdata for p in played.parameters()}
            played.train()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                played(torch.empty(batch, 3, *size))
            used = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in own]
    except Exception:  # a layer that reads values, which do not exist here
        return 0.0
    lean = LEAN_PART if config.lean and not config.checkpointing else 1.0
    return sum(used) / _MIB * lean * (1.0 if config.precision == "fp32" else HALF_PART)


def _tokens_part(config: TrainConfig) -> float:
    """The least share of a step that fewer tokens leave: a bound, as if they were gone at once."""
    return 1 - config.token_plan.share


def _free_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / _MIB
    return available_memory_mib()


def _gib(mib: float) -> str:
    return f"{mib / 1024:,.1f} GiB"
