"""Noise on what adapters change, for training objectives; the methods' own penalty terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vitune.backbones.sites import Site, find_sites
from vitune.errors import BackboneError, VituneError
from vitune.methods.core.layer import InPlaceLayer, MethodLayer
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.peft_options import method_name
from vitune.objectives.step import DeltaNoise, NoisePlan

RECOMPUTING = ("grad_checkpointing", "gradient_checkpointing")
"""Flags by which timm and transformers declare that activations are recomputed."""


def noise_plan(model: nn.Module) -> NoisePlan:
    """Where noise on the adapter's changes acts in `model`: every adapted layer of a block.

    PEFT's own layers take part too; their change is their output minus the base layer's.

    Raises:
        VituneError: the method changes no layer's output, or activations are recomputed, which
            would draw the noise again.
        BackboneError: an adapted layer is read, not called, by its attention.
    """
    sites = find_sites(model)
    blocks = [site for site in sites if site.role == "block"]
    config = _config(model)
    name = method_name(config)
    if isinstance(config, MethodConfig) and not config.exposes_delta:
        raise VituneError(
            f"objective 'pace': got method {name!r}, expected one whose layers change an output. "
            "Use --objective cross_entropy, or another method."
        )
    for module_name, module in model.named_modules():
        if any(module.__dict__.get(flag) for flag in RECOMPUTING):
            raise VituneError(
                f"objective 'pace': got recomputed activations in {module_name!r}, expected "
                "stored ones, as a second pass would draw other noise. Leave --checkpointing off."
            )
    layers = _layers(model, sites)
    if not blocks:
        raise BackboneError(
            "objective 'pace': got a backbone without transformer blocks, expected some, as the "
            "noise falls with depth. Use --objective cross_entropy."
        )

    @contextmanager
    def applied(noise: DeltaNoise) -> Iterator[None]:
        undo = [_noised(layer, block, noise) for layer, block in layers]
        try:
            yield
        finally:
            for step in undo:
                step()

    is_hierarchical = any(site.role == "reduction" or site.windowed for site in sites)
    return NoisePlan(len(blocks), is_hierarchical, applied)


def method_penalty(
    model: nn.Module, progress: float, labels: Tensor | None = None
) -> Tensor | None:
    """The sum of the active adapters' own terms of the training loss, or None.

    Args:
        progress: completed share of training, in [0, 1].
        labels: of the batch, (b,) or target shares (b, c).
    """
    terms = [
        layer.penalty(adapter, progress, labels)
        for layer in model.modules()
        if isinstance(layer, MethodLayer)
        for adapter in layer.adapters_here()
    ]
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _config(model: nn.Module) -> Any:
    configs = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapter", None)
    return configs.get(active) if isinstance(active, str) else None


def _layers(model: nn.Module, sites: tuple[Site, ...]) -> list[tuple[nn.Module, int]]:
    """Adapted layers in blocks, with the block's index."""
    site_of = {site.name: site for site in sites}
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, InPlaceLayer):
            continue
        site = module.site if isinstance(module, MethodLayer) else site_of.get(name)
        if site is None or site.block is None or site.role == "conv":
            continue
        if site.direct_weight:
            raise BackboneError(
                f"objective 'pace' at {site.name!r} ({site.role}): got an attention that reads "
                "the layer's weight itself, expected one that calls the layer. "
                "Use --objective cross_entropy, or leave the role out with roles=..."
            )
        found.append((module, site.block))
    return found


def _noised(layer: nn.Module, block: int, noise: DeltaNoise) -> Any:
    """Put noise on one layer; returns a function that removes it."""
    if isinstance(layer, MethodLayer):
        layer.delta_noise = lambda _, delta: noise(block, delta)
        return lambda: layer.__dict__.pop("delta_noise", None)

    def around_base(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        base = module.base_layer(*given)  # type: ignore[operator]
        result: Tensor = base + noise(block, output - base)
        return result

    return layer.register_forward_hook(around_base).remove
