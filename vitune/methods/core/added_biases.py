"""Biases that merging adds to layers without one, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vitune.backbones.fingerprint import bare_name
from vitune.backbones.hf_saving import make_savable
from vitune.methods.core.layer import InPlaceLayer, MethodLayer


@contextmanager
def kept_on_saving(model: nn.Module) -> Iterator[None]:
    """Around merging and unloading: transformers models in `model` keep the added biases."""
    without = {
        bare_name(name): layer.get_base_layer()
        for name, layer in model.named_modules()
        if isinstance(layer, MethodLayer)
        and not isinstance(layer, InPlaceLayer)
        and (layer._originals or layer.base_tensors()).get("bias", "absent") is None
    }
    yield
    make_savable(model, [f"{name}.bias" for name, base in without.items() if base.bias is not None])
