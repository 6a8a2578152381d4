"""LayerNorm tuning: the weight and bias of every norm are trained, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vitune.methods.authoring import ALL_LINEAR, BackboneError, InPlaceConfig, own_parameters


@dataclass
class LayerNormConfig(InPlaceConfig):
    """w' = w + Δw, b' = b + Δb for every LayerNorm (or RMSNorm) of the backbone.

    Raises:
        BackboneError: at injection, where the backbone has no such norm; batch norms, whose
            statistics depend on the batch, are not counted.
    Source: common practice; "LN-tune" rows. Unlike PEFT's ln_tuning, which trains whole copies
        of modules, this finds the norms by itself.
    """

    method = "layernorm"
    title = "LayerNorm only"
    source = "common practice"
    formula = "Σ 2·d over norms"
    counts_on_vit_b16 = (({}, 38_400),)
    narrowed_by = InPlaceConfig.narrowed_by - {ALL_LINEAR}

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return f"{cls.title} trains norms, which have no such role"

    def trained(self, model: nn.Module) -> Iterable[tuple[str, str]]:
        pairs = [
            (name, parameter)
            for name, parameter in own_parameters(model)
            if parameter in ("weight", "bias") and _is_layer_norm(model.get_submodule(name))
        ]
        if not pairs:
            raise BackboneError(
                f"{self.title}: got {type(model).__name__} without a LayerNorm, expected one. "
                "Choose another method ('vitune methods')."
            )
        return pairs


def _is_layer_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return True
    is_named_norm = type(module).__name__.endswith("Norm")
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_named_norm and not is_batch_norm and getattr(module, "weight", None) is not None
