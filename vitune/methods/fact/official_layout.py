"""Load checkpoints of FacT's own code into a FacT adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitune.backbones.sites import head_names
from vitune.methods.authoring import AdapterError
from vitune.methods.fact.fact_layers import FactorisedLinear

TT_NAMES = {
    "qkv": ("attn.q", "attn.k", "attn.v"),
    "q": ("attn.q",),
    "k": ("attn.k",),
    "v": ("attn.v",),
    "attn_out": ("attn.proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
"""Where the authors' code keeps the cores of a role: between `blocks.N.` and `_FacTs`."""


@torch.no_grad()
def load_official(
    model: PeftModel, tensors: Mapping[str, Tensor], adapter: str = "default"
) -> None:
    """Put a checkpoint of the authors' `fact_tt.py` or `fact_tk.py` into `adapter` and its head.

    The scale s is not in their file: pass `scale` to the config. TK needs layout="official".

    Args:
        model: a plain ViT with one width under fact_tt or fact_tk.
        tensors: what `torch.load(file, weights_only=True)` gives.

    Raises:
        AdapterError: another method or layout, or tensors missing, left over or of another shape.
    Source: FacT (AAAI 2023), github.com/JieShibo/PETL-ViT, `save` in fact_tk.py and fact_tt.py.
    """
    config = model.peft_config[adapter]
    method = config.peft_type.value.lower()
    if method not in ("fact_tt", "fact_tk") or getattr(config, "layout", "") == "blocks":
        raise AdapterError(
            f"FacT checkpoint: got an adapter of {method!r} with layout "
            f"{getattr(config, 'layout', None)!r}, expected fact_tt, or fact_tk with "
            "layout='official'."
        )
    is_tucker = method == "fact_tk"
    layers = [module for module in model.modules() if isinstance(module, FactorisedLinear)]
    expected = {**_shared(layers[0], adapter), **_head(model)}
    if is_tucker:
        expected["FacTp"] = [layer.cores[adapter] for layer in layers]
    else:
        for layer in layers:
            expected.update(_cores(layer, adapter))
    odd = sorted(set(tensors) ^ set(expected))
    if odd:
        raise AdapterError(
            f"FacT checkpoint: got {odd} missing or left over, expected {sorted(expected)[:8]} ..."
        )
    for name, places in expected.items():
        _fill(name, places, tensors[name])


def _shared(layer: FactorisedLinear, adapter: str) -> dict[str, list[Tensor]]:
    """The parameters that all layers share, by the authors' names."""
    shared, width = layer.shared[adapter], min(layer.num_out, layer.num_in)
    assert shared is not None
    names = {"FacTu.weight": f"down_{width}", "FacTv.weight": f"up_{width}"}
    if layer.configs[adapter].tucker:
        names["FacTc"] = f"core_{width}"
    return {theirs: [getattr(shared, ours)] for theirs, ours in names.items()}


def _cores(layer: FactorisedLinear, adapter: str) -> dict[str, list[Tensor]]:
    """TT's cores by the authors' names: (c·r, r) of fc1, (r, c'·r) of fc2, (r, r) of the rest."""
    cores: Tensor = layer.cores[adapter]  # (c, c', r, r)
    names = [f"blocks.{layer.site.block}.{name}_FacTs.weight" for name in TT_NAMES[layer.site.role]]
    if len(names) > 1:
        return {name: [cores[index, 0]] for index, name in enumerate(names)}
    parts = cores.flatten(0, 1)  # (c·c', r, r)
    return {names[0]: list(parts)}


def _head(model: nn.Module) -> dict[str, list[Tensor]]:
    """The trained head's weight and bias."""
    (name,) = head_names(model)
    trained = model.get_submodule(name)
    return {
        f"head.{key.rpartition('.')[2]}": [parameter]
        for key, parameter in trained.named_parameters()
        if parameter.requires_grad
    }


def _fill(name: str, places: list[Tensor], given: Tensor) -> None:
    """Cut `given` along the one axis where it is longer than its target, and copy the pieces."""
    shape = torch.Size(places[0].shape)
    for axis in range(len(shape)):
        whole = sum(place.shape[axis] for place in places)
        if given.shape == torch.Size([*shape[:axis], whole, *shape[axis + 1 :]]):
            sizes = [place.shape[axis] for place in places]
            for place, piece in zip(places, given.split(sizes, axis), strict=True):
                place.copy_(piece)
            return
    raise AdapterError(
        f"FacT checkpoint: got {name} of shape {tuple(given.shape)}, expected "
        f"{len(places)} parts of {tuple(shape)} side by side."
    )
