"""The attack of a server with a tampered backbone: which gates a method's parameters allow."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vitune.adapters import inject
from vitune.backbones import Site, find_sites, head_names, unwrapped
from vitune.errors import BackboneError
from vitune.methods import get_method
from vitune.privacy.bins import Reading, clustered
from vitune.privacy.head_gates import HeadAttack
from vitune.privacy.number_gates import NeuronBank, NumberAttack
from vitune.privacy.prepared import Prepared, prepare
from vitune.privacy.shared_update import trained
from vitune.privacy.vector_gates import (
    Bank,
    VectorAttack,
    bottleneck_bank,
    low_rank_bank,
    weight_bank,
)

PREFIX, IN_PLACE = "vitune_", "vitune_value"
"""How parameters that methods add are named, and those that stand in for the backbone's own."""
SHARED = "shared_state"
"""Where a method keeps parameters that several layers share."""
NUM_TRIED = 4
"""Public images that show whether a method changes anything at its start."""
NEUTRAL = {"scale": 1.0, "scale_in": 1.0, "temperature": 1.0}
"""Where parameters that a method added start, so that they change nothing; all others at 0."""


@dataclass(frozen=True)
class Recovered:
    """What the server read.

    Args:
        images: normalised (3, h, w); patches that were not read are 0.
        known: which patches were read, (patches,) per image.
        readings: single tokens, before they were grouped; empty where images are read whole.
    """

    images: list[Tensor]
    known: list[Tensor]
    readings: list[Reading]
    groups: list[list[Reading]]


@dataclass(frozen=True)
class Malicious:
    """A tampered model, the attack that knows it, and what can be read at most.

    Args:
        model: what every client is sent.
        num_bins: tokens (or whole images) that can be told apart.
    """

    model: PeftModel
    attack: VectorAttack | NumberAttack | HeadAttack
    prepared: Prepared
    batch: int

    def recover(self, update: dict[str, Tensor]) -> Recovered:
        """Images from an update of `model`."""
        if not isinstance(self.attack, VectorAttack):
            whole = self._whole(update)
            images = [self._image(coefficients) for coefficients in whole]
            known = [torch.ones(self.prepared.layout.num_patches, dtype=torch.bool)] * len(whole)
            return Recovered(images, known, [], [])
        readings = self.attack.readings(update)
        groups = clustered(readings, self.batch)
        images, known = [], []
        for group in groups:
            coefficients = torch.zeros(self.prepared.layout.num_patches, len(self.prepared.basis))
            seen = torch.zeros(len(coefficients), dtype=torch.bool)
            for reading in group:
                coefficients[reading.position] = reading.coefficients
                seen[reading.position] = True
            images.append(self._image(coefficients))
            known.append(seen)
        return Recovered(images, known, readings, groups)

    def _whole(self, update: dict[str, Tensor]) -> list[Tensor]:
        """Images that are read in one piece, as coefficients."""
        if isinstance(self.attack, NumberAttack):
            return self.attack.images(update)
        assert isinstance(self.attack, HeadAttack)
        return self.attack.images(*head_gradient(self.model, update))

    def _image(self, coefficients: Tensor) -> Tensor:
        """(patches, n) -> (3, h, w)."""
        layout = self.prepared.layout
        patches = self.prepared.patches(coefficients)  # (patches, 3, p, p)
        grid = patches.unflatten(0, (layout.grid, layout.grid))  # (g, g, 3, p, p)
        return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def new_malicious(
    model: nn.Module,
    method: str,
    method_args: dict[str, Any],
    public: Tensor,
    batch: int,
    *,
    detail: float | None = None,
    seed: int = 0,
) -> Malicious:
    """`model`, tampered with to attack `method`, whose initial values the server chooses too.

    Args:
        model: a timm ViT; overwritten.
        public: normalised images (b, 3, h, w) like the victim's.
        batch: images that a client is expected to use at once.
        detail: share of each patch's coefficients that scales and biases are to read; None
            trades it for bins (see `NumberAttack`).

    Raises:
        BackboneError: the attack does not fit the architecture, or the method trains nothing that
            the attack can read.
    """
    probe = inject(copy.deepcopy(model), get_method(method).configure(model, method_args))
    copies = any(_behind_branches(probe))
    prepared = prepare(model, public, copies=copies, seed=seed)
    adapted = inject(model, get_method(method).configure(model, method_args))
    _neutralise(adapted)
    vectors = list(_vector_banks(adapted, prepared.layout.loss))
    if vectors:
        attack = VectorAttack(vectors, prepared, public)
        return Malicious(adapted, attack, prepared, batch)
    neurons = list(_neuron_banks(adapted))
    if neurons:
        numbers = NumberAttack(neurons, prepared, public, batch, detail)
        return Malicious(adapted, numbers, prepared, batch)
    raise BackboneError(
        f"malicious backbone: got method {method!r}, which trains nothing at the MLPs that the "
        "attack can read, expected bottlenecks behind them, low-rank matrices, scales, biases or "
        "weights. Leave 'malicious' out of --attack."
    )


def new_malicious_head(
    model: nn.Module,
    method: str,
    method_args: dict[str, Any],
    public: Tensor,
    batch: int,
    *,
    seed: int = 0,
) -> Malicious:
    """The backbone tampered with to show images to the head alone, whatever else `method` trains.

    Raises:
        BackboneError: the attack does not fit the architecture.
    """
    prepared = prepare(model, public, copies=False, seed=seed)
    attack = HeadAttack(model, prepared)
    before = _read_by_head(model, public[:NUM_TRIED])
    adapted = inject(model, get_method(method).configure(model, method_args))
    after = _read_by_head(adapted.base_model.model, public[:NUM_TRIED])
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3):
        _neutralise(adapted)
    return Malicious(adapted, attack, prepared, batch)


@torch.no_grad()
def _read_by_head(network: nn.Module, images: Tensor) -> Tensor:
    """What reaches the classifier."""
    seen: list[Tensor] = []
    head = network.get_submodule(head_names(network)[0])
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        network.eval()(images)
    finally:
        handle.remove()
    return seen[0]


def head_gradient(model: PeftModel, update: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight (c, d) and bias (c,) of the classifier in an update.

    Raises:
        BackboneError: the update holds none.
    """
    head = head_names(model.base_model.model)[0]
    found = {
        part: value
        for part in ("weight", "bias")
        for name, value in update.items()
        if f".{head}." in name and name.endswith(f".{part}")
    }
    if len(found) != 2:
        raise BackboneError(
            "head's gradient: got none in the update, expected a method that trains a classifier "
            "with a bias. Leave 'labels' and 'head' out of --attack."
        )
    return found["weight"], found["bias"]


@torch.no_grad()
def _neutralise(model: PeftModel) -> None:
    """Start what the method added such that it changes nothing, if only gates are set later."""
    for name, value in trained(model).items():
        steps = name.split(".")
        kind = next((step for step in steps if step.startswith((PREFIX, SHARED, "lora_"))), "")
        if kind and kind != IN_PLACE:
            value.fill_(NEUTRAL.get(kind.removeprefix(PREFIX), 0.0))


def _sites(model: PeftModel, *roles: str) -> list[Site]:
    """Sites of these roles in all blocks but the last, whose branches only the head reads."""
    found = [site for site in find_sites(model.base_model.model) if site.role in roles]
    last = max((site.block or 0 for site in found), default=0)
    return [site for site in found if site.block != last]


def _behind_branches(model: PeftModel) -> Iterator[Site]:
    """Where a bottleneck reads what attention or MLP hands on; block 0's attention makes tags.

    Two thin factors without a bias between them (LoRA's, HTA's) change a weight: no gate.
    """
    names = trained(model)
    for site in _sites(model, "attn_out", "fc2"):
        is_tagger = site.block == 0 and site.role == "attn_out"
        parts = [_named(site, f"{PREFIX}{part}.default") for part in ("down", "down_bias", "up")]
        if names.keys() >= set(parts) and not is_tagger:
            yield site


def _vector_banks(model: PeftModel, loss: int) -> Iterator[Bank]:
    names = trained(model)
    for site in _behind_branches(model):
        down = _named(site, f"{PREFIX}down.default")
        up = _named(site, f"{PREFIX}up.default")
        yield bottleneck_bank(down, names[down], names[up], loss)
    for site, fc1, fc2 in _mlps(model):
        first = _named(site, "lora_A.default.weight")
        second = _named(site, "lora_B.default.weight")
        if first in names and second in names:
            yield low_rank_bank(first, names[first], names[second], fc1, fc2, loss)
        whole = _in_place(site, "weight")
        if whole in names:
            behind = _in_place(_partner(model, site), "weight")
            yield weight_bank(whole, names[whole], names.get(behind, fc2), loss)


def _neuron_banks(model: PeftModel) -> Iterator[NeuronBank]:
    names = trained(model)
    for site, fc1, fc2 in _mlps(model):
        shift = _named(site, f"{PREFIX}shift.default")
        for kind in ("scale", "scale_out"):
            scale = _named(site, f"{PREFIX}{kind}.default")
            if scale in names and shift in names:
                yield NeuronBank(fc1, fc2, scale, shift, _first_column)
        bias = _in_place(site, "bias")
        if bias in names:
            yield NeuronBank(fc1, fc2, None, bias, _first_column)


def _mlps(model: PeftModel) -> Iterator[tuple[Site, nn.Linear, nn.Linear]]:
    network = model.base_model.model
    for site in _sites(model, "fc1"):
        partner = _partner(model, site)
        first = unwrapped(network.get_submodule(site.name))
        second = unwrapped(network.get_submodule(partner.name))
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        yield site, first, second


def _partner(model: PeftModel, site: Site) -> Site:
    return next(one for one in _sites(model, "fc2") if one.block == site.block)


def _named(site: Site, parameter: str) -> str:
    return f"base_model.model.{site.name}.{parameter}"


def _in_place(site: Site, slot: str) -> str:
    return _named(site, f"parametrizations.{slot}.0.{IN_PLACE}.default")


def _first_column(gradient: Tensor) -> Tensor:
    return gradient if gradient.dim() == 1 else gradient[:, 0]
