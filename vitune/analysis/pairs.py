"""Every weight that an adaptation changed, before and after, from one model or two."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.analysis.blocks import block_names, depth_of
from vitune.backbones.sites import Site, find_sites, head_names
from vitune.errors import AdapterError, BackboneError

OTHER = "other"
"""Role of a weight outside all sites: embeddings, layer scales, position tables."""

_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightPair:
    """One changed weight; matrices (out, in) are for `compare_weights`, vectors are not.

    Shapes: before, after (o, i) for a matrix, (c,) for anything else, flattened.

    Args:
        name: the parameter's qualified name in the network without adapters.
        role: the site's role; a part of a fused q, k, v has the role q, k or v; OTHER elsewhere.
        block: index over depth, None outside blocks.
        part: which part of a fused linear: "q", "k", "v", or "1", "2" for a fused gate and up
            projection; None for a whole weight.
    """

    name: str
    role: str
    block: int | None
    part: str | None
    before: Tensor
    after: Tensor

    @property
    def is_matrix(self) -> bool:
        """Whether the weight is one of a linear layer or a convolution."""
        return self.before.ndim == 2


@dataclass(frozen=True)
class WeightPairs:
    """The changed weights in the network's order.

    Args:
        pairs: matrices and vectors.
        num_unchanged: matrices outside the head, counted by part, that are bit-identical.
        num_unmergeable: adapted modules that do more than change a weight and give no pair.
        note: what the pairs leave out, in sentences, or "".
    """

    pairs: tuple[WeightPair, ...]
    num_unchanged: int
    num_unmergeable: int
    note: str

    def __iter__(self) -> Iterator[WeightPair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def weight_pairs(model: nn.Module, tuned: nn.Module | None = None) -> WeightPairs:
    """The differing weights of a network without and with its adapters.

    `weight_pairs(peft_model)` compares the base that the adapters stand on with a copy into which
    the active adapters are merged, in float64, so that the pair shows the method's own change and
    not the rounding of its storage. `weight_pairs(base, tuned)` compares two networks: plain ones
    (merged, or fully fine-tuned) as they are, a PEFT model as base without and as tuned with its
    adapters. The classifier head is left out; the models are not changed. For methods that rewrite
    the base at initialisation (PiSSA, OLoRA), pass the pre-trained network as `model`.

    Layers that cannot be merged (prompts, bottleneck adapters) give no pair; the note says so.
    Needs memory for one copy of the network and one more in float64.

    Raises:
        AdapterError: two networks that have different sets of weights outside the head.
    """
    before, after = model, model if tuned is None else tuned
    base = _without_adapters(before) if _is_peft(before) else before
    merged, num_unmergeable, notes = _merged(after) if _is_peft(after) else (after, 0, [])
    try:
        sites = find_sites(base)
    except BackboneError:
        sites = ()
        notes.append("No block of this network is recognised, so all roles are 'other'.")
    pairs, num_unchanged = _changed(base, merged, sites)
    if not pairs and not notes:
        notes.append("No weight differs from the base.")
    return WeightPairs(tuple(pairs), num_unchanged, num_unmergeable, " ".join(notes))


def _is_peft(model: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def tuner_layers(model: nn.Module) -> list[Any]:
    """PEFT's `BaseTunerLayer`s in a network, outer ones before those inside them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _without_adapters(model: nn.Module) -> nn.Module:
    """A copy of the network under the adapters; previously merged adapters are removed again."""
    from peft.utils.other import ModulesToSaveWrapper

    network = copy.deepcopy(model).cpu()
    if any(layer.merged for layer in tuner_layers(network)):
        network.double()
        for layer in tuner_layers(network):
            if layer.merged:
                layer.unmerge()
    for name, module in list(network.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            network.set_submodule(name, module.original_module)
    return _unloaded(network)


def _merged(model: nn.Module) -> tuple[nn.Module, int, list[str]]:
    """A float64 copy with every mergeable layer merged, the number of the others, and notes."""
    network = copy.deepcopy(model).cpu().double()
    layers, notes = tuner_layers(network), []
    if not layers:
        notes.append(
            "The method changes no weight outside the head (it trains the head alone, or adds "
            "inputs): there is nothing to compare."
        )
    refused: Counter[str] = Counter()
    for layer in layers:
        try:
            if not layer.merged:
                layer.merge()
        except (ValueError, NotImplementedError):
            refused[type(layer).__name__] += 1
    for kind, number in refused.items():
        notes.append(
            f"{number} of {len(layers)} adapted modules cannot be merged ({kind}), because they "
            "do more than change a weight: they have no figures here."
        )
    return _unloaded(network), refused.total(), notes


def _unloaded(model: Any) -> nn.Module:
    """The network inside a PEFT model, without its adapter layers."""
    if not tuner_layers(model):
        inner: nn.Module = model.get_base_model()
        return inner
    unloaded: nn.Module = model.base_model.unload()
    return unloaded


def _changed(
    base: nn.Module, tuned: nn.Module, sites: tuple[Site, ...]
) -> tuple[list[WeightPair], int]:
    """The weights that differ, and the number of matrices that do not."""
    heads = tuple(f"{name}." for name in (*head_names(base), *head_names(tuned)))
    old = {name: p for name, p in base.named_parameters() if not name.startswith(heads)}
    new = {name: p for name, p in tuned.named_parameters() if not name.startswith(heads)}
    _check_same(old, new)
    blocks = block_names(base, sites)
    pairs, num_unchanged = [], 0
    for name, after in new.items():
        before = old[name] if name in old else _neutral(name, after)
        owner = tuned.get_submodule(name.rpartition(".")[0])
        for pair in _pairs_of(name, owner, sites, blocks, before.detach(), after.detach()):
            if not torch.equal(pair.before.double(), pair.after.double()):
                pairs.append(pair)
            elif pair.is_matrix:
                num_unchanged += 1
    return pairs, num_unchanged


def _check_same(old: dict[str, nn.Parameter], new: dict[str, nn.Parameter]) -> None:
    """Refuse different names and shapes, except vectors that merging may add to a layer."""
    odd = sorted(old.keys() - new.keys())
    odd += sorted(name for name in new.keys() - old.keys() if new[name].ndim != 1)
    odd += sorted(name for name in old.keys() & new.keys() if old[name].shape != new[name].shape)
    if odd:
        raise AdapterError(
            f"tuned: got a network that differs from the base in {odd[:3]!r} ({len(odd)} in all), "
            "expected the same weights outside the head. Compare a model with its own base."
        )


def _neutral(name: str, after: Tensor) -> Tensor:
    """The value of a missing vector: zeros for a bias, ones for a norm's weight."""
    return torch.zeros_like(after) if name.endswith("bias") else torch.ones_like(after)


def _pairs_of(
    name: str,
    owner: nn.Module,
    sites: tuple[Site, ...],
    blocks: list[str],
    before: Tensor,
    after: Tensor,
) -> Iterator[WeightPair]:
    """One pair for a parameter, or one for each part of a fused linear."""
    module, _, leaf = name.rpartition(".")
    site = next((s for s in sites if s.name == module and s.role != "block"), None)
    block = depth_of(module, blocks)
    role = OTHER if site is None else site.role
    shape = (before.shape[0], -1) if _is_matrix(owner, leaf) else (-1,)
    before, after = before.reshape(shape), after.reshape(shape)
    if site is None or site.num_parts == 1:
        yield WeightPair(name, role, block, None, before, after)
        return
    fused = role == "qkv"
    labels = site.parts if fused else [str(index + 1) for index in range(site.num_parts)]
    chunks = (tensor.chunk(site.num_parts) for tensor in (before, after))
    for label, *parts in zip(labels, *chunks, strict=True):
        yield WeightPair(name, label if fused else role, block, label, *parts)


def _is_matrix(owner: nn.Module, leaf: str) -> bool:
    if isinstance(owner, nn.MultiheadAttention):
        return leaf.endswith("proj_weight")
    return isinstance(owner, _MATRIX_LAYERS) and leaf == "weight"
