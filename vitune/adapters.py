"""Adapters on disk and in a model: PEFT's format plus what PEFT lacks.

Next to PEFT's two files is `vitune.json`, the card: see `vitune.cards`. The head is always part of
an adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.save_and_load import set_peft_model_state_dict
from torch import Tensor, nn

from vitune.backbones import Backbone, find_sites, fingerprint, head_names
from vitune.cards import KEEP, refuse_unless_forced
from vitune.cards import AdapterCard as AdapterCard
from vitune.cards import adapter_folder as adapter_folder
from vitune.environment import installed_versions as installed_versions
from vitune.errors import AdapterError, listed, one_line
from vitune.fewer_tokens import TokenPlan
from vitune.files import atomic_folder, check_new_folder, recover_folder
from vitune.methods import (
    AdapterState,
    combined_state,
    current_names,
    get_method,
    method_name,
    require_plugin,
)
from vitune.tensors import disk_errors, read_tensors, write_tensors

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MERGED = "model.safetensors"
ADDED_BIASES = ("bias", "in_proj_bias")
"""Names of biases that a merge may add to a layer without one."""


def attach(
    backbone: Backbone, method: str, method_args: Mapping[str, Any] | None = None
) -> PeftModel:
    """The backbone's model with `method` injected, the head trainable and the rest frozen.

    Raises:
        VituneError: an unknown method or argument, or a value out of range.
        BackboneError: the backbone has no site the method needs.
    """
    config = get_method(method).configure(backbone.model, method_args)
    return inject(backbone.model, config)


def inject(model: nn.Module, config: PeftConfig) -> PeftModel:
    """`get_peft_model` with PEFT's errors turned into vitune's."""
    try:
        return get_peft_model(model, config)
    except AdapterError:
        raise
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        if type(error).__module__.startswith("vitune"):
            raise
        reason = " ".join(str(error).split())
        raise AdapterError(f"method {method_name(config)!r} on this backbone: {reason}") from error


def card_of(
    model: PeftModel,
    backbone: Backbone,
    *,
    method: str,
    method_args: Mapping[str, Any],
    backbone_args: Mapping[str, Any],
    classes: Iterable[str],
    tokens: str = KEEP,
    temperature: float = 1.0,
) -> AdapterCard:
    """The card for an adapter in `model`, with the fingerprint of the weights it touches."""
    return AdapterCard(
        method=method,
        method_args=dict(method_args),
        backbone=backbone.name,
        backbone_args=dict(backbone_args),
        preprocessing=backbone.preprocessing,
        classes=tuple(classes),
        fingerprint=fingerprint_of(model),
        temperature=temperature,
        versions=installed_versions(),
        tokens=tokens,
        plugin=dict(get_method(method).plugin),
    )


def fingerprint_of(model: PeftModel) -> str:
    """The fingerprint of the frozen weights that the adapters of `model` touch.

    A method without layers outside the head (a probe) depends on the whole backbone.
    """
    tuner = model.base_model
    heads = head_names(tuner.model)
    touched = [n for n in getattr(tuner, "targeted_module_names", ()) if n not in heads]
    if not touched:
        sites = find_sites(tuner.model)
        touched = [site.name for site in sites if site.role not in ("block", "head")]
    return fingerprint(tuner.model, touched)


def save_adapter(
    model: PeftModel, folder: str | Path, card: AdapterCard, *, dtype: torch.dtype | None = None
) -> None:
    """Write PEFT's files and the card to `folder`; the previous ones survive any failure.

    Args:
        dtype: type of the stored tensors; None keeps their own.
    """
    with atomic_folder(folder) as aside:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file")
            with disk_errors(Path(folder) / TENSORS):
                model.save_pretrained(str(aside))
        if dtype is not None:
            tensors = {
                key: value.to(dtype) if value.is_floating_point() else value
                for key, value in read_tensors(aside / TENSORS).items()
            }
            write_tensors(aside / TENSORS, tensors)
        readme = aside / "README.md"
        readme.unlink(missing_ok=True)
        card.write(aside)


def load_adapter(
    model: nn.Module, folder: str | Path, *, force: bool = False, trainable: bool = False
) -> PeftModel:
    """`model` with the adapter in `folder`, every tensor checked.

    Args:
        force: load even if the backbone's weights are not those the adapter was trained on, or the
            files have changed since they were written.

    Raises:
        AdapterError: files missing or damaged; another backbone; tensors missing, left over or of
            the wrong shape, the first of which are listed. The model is then unchanged.
    """
    folder = Path(folder)
    recover_folder(folder)
    card = AdapterCard.read(folder, force=force)
    tensors = read_tensors(folder / TENSORS)
    config = read_config(folder, card, force)
    config.inference_mode = not trainable
    own = {name: (value, value.requires_grad) for name, value in model.named_parameters()}
    adapted = inject(model, config)
    try:
        _check_fingerprint(adapted, card, force)
        tensors = current_names(adapted, tensors)
        check_tensors(adapted, tensors, folder)
        card.check_file(folder / TENSORS, force=force)
    except AdapterError:
        adapted.unload()
        for name, (value, trains) in own.items():  # PEFT leaves a copy of the head, all frozen
            place, _, last = name.rpartition(".")
            setattr(model.get_submodule(place), last, value.requires_grad_(trains))
        raise
    set_peft_model_state_dict(adapted, tensors)
    return adapted


def combine_adapters(
    folders: Sequence[str | Path], weights: Sequence[float], *, how: str, out: str | Path
) -> list[str]:
    """Write Σ w_i · adapter_i of trained adapters, by the arithmetic of their method, to `out`.

    Args:
        folders: run or adapter folders, all of one backbone.
        how: "compose" (keeps the rank) or "sum" (adds the ΔW, ranks concatenate).

    Returns:
        Notes on what could not be combined and what was done instead (for the head, for example).

    Raises:
        AdapterError: `out` exists, the method has no such arithmetic, or the adapters differ in
            backbone, variant, roles or ranks; all differences are listed.
    """
    check_new_folder(out)
    places = [adapter_folder(folder) for folder in folders]
    cards = [AdapterCard.read(place) for place in places]
    _check_same_backbone(cards, places)
    states = [_read_state(place, card) for place, card in zip(places, cards, strict=True)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same_classes = len({card.classes for card in cards}) == 1
        combined = combined_state(states, weights, how, "auto" if same_classes else "first")
    named = {**cards[0].method_args, **_changed(states[0].config, combined.config, cards[0])}
    with atomic_folder(out) as aside:
        combined.config.save_pretrained(str(aside))
        tensors = {name: value.contiguous() for name, value in combined.tensors.items()}
        write_tensors(aside / TENSORS, tensors)
        card = replace(cards[0], method_args=named, temperature=1.0, versions=installed_versions())
        card.write(aside)
    notes = [str(warning.message) for warning in caught]
    if not same_classes:
        notes.append("The adapters have different classes: head and classes are the first's.")
    return [*notes, *_taken_from_first(cards)]


def _taken_from_first(cards: Sequence[AdapterCard]) -> list[str]:
    """Notes on what surrounds the weights, where the adapters differ in it."""
    notes, plans = [], [TokenPlan.parse(card.tokens) for card in cards]
    if len({plan if plan.in_inference else None for plan in plans}) > 1:
        notes.append(f"The adapters have different tokens: the first's apply ({plans[0]}).")
    if any(card.preprocessing != cards[0].preprocessing for card in cards):
        notes.append("The adapters have different image sizes or preprocessing: the first's apply.")
    return notes


def _changed(before: PeftConfig, after: PeftConfig, card: AdapterCard) -> dict[str, Any]:
    """The method's arguments that a combination has changed."""
    names = get_method(card.method).argument_names()
    return {
        name: getattr(after, name)
        for name in names
        if getattr(after, name) != getattr(before, name)
    }


def merged_model(model: PeftModel, *, safe: bool = True) -> nn.Module:
    """The plain network with the adapter folded into its weights; `model` is consumed.

    Raises:
        AdapterError: the method cannot be merged, or the result holds a non-finite value.
    """
    try:
        merged: nn.Module = model.merge_and_unload(safe_merge=safe)
    except (ValueError, NotImplementedError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"merge: {' '.join(str(error).split())}") from error
    return merged


def missing_biases(model: nn.Module) -> dict[int, list[str]]:
    """By `id` of a layer of `model`, the names of the biases that it could have and has not."""
    return {
        id(layer): names
        for layer in model.modules()
        if (names := [name for name in ADDED_BIASES if layer._parameters.get(name, 0) is None])
    }


def added_biases(network: nn.Module, missing: Mapping[int, Sequence[str]]) -> list[str]:
    """Names of biases in a merged network that it lacked before (`missing_biases`)."""
    return [
        f"{name}.{bias}"
        for name, layer in network.named_modules()
        for bias in missing.get(id(layer), ())
        if layer._parameters.get(bias) is not None
    ]


def save_merged(model: nn.Module, folder: str | Path, card: AdapterCard) -> None:
    """Write a merged network (safetensors) and its card to `folder`.

    The tensors have the backbone's own names; a layer without a pre-trained bias may have one.
    """
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_folder(folder) as aside:
        write_tensors(aside / MERGED, _untied(state))
        replace(card, merged=True, fingerprint=None).write(aside)


def load_merged(model: nn.Module, folder: str | Path, *, force: bool = False) -> nn.Module:
    """`model` (the plain backbone with a head of the right size) with merged weights.

    Args:
        force: load even if the file has changed since it was written.

    Raises:
        AdapterError: tensors missing, left over or of the wrong shape, the first of which are
            listed; or a file that has changed since it was written.
    """
    tensors = read_tensors(Path(folder) / MERGED)
    for name in sorted(set(tensors) - set(model.state_dict())):
        owner, _, leaf = name.rpartition(".")
        if leaf in ADDED_BIASES and getattr(model.get_submodule(owner), leaf, 0) is None:
            bias = nn.Parameter(torch.empty_like(tensors[name]), requires_grad=False)
            model.get_submodule(owner).register_parameter(leaf, bias)
    _compare_tensors(model.state_dict(), tensors, Path(folder))
    AdapterCard.read(folder, force=force).check_file(Path(folder) / MERGED, force=force)
    model.load_state_dict(tensors)
    return model


def read_config(folder: Path, card: AdapterCard, force: bool = False) -> PeftConfig:
    """PEFT's configuration of an adapter; PEFT itself would look on the hub if it is missing."""
    file = folder / CONFIG
    if not file.is_file():
        raise AdapterError(
            f"adapter: got {str(folder)!r} without {CONFIG}, expected PEFT's file there. Get a "
            "complete copy."
        )
    card.check_file(file, force=force)
    require_plugin(card.method, card.plugin)
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise AdapterError(f"{file}: got a damaged file ({one_line(error)}).") from error


def _read_state(folder: Path, card: AdapterCard) -> AdapterState:
    """An adapter folder as a configuration and tensors, without a model."""
    config = read_config(folder, card)
    tensors = read_tensors(folder / TENSORS)
    card.check_file(folder / TENSORS)
    return AdapterState(config, tensors)


def _check_same_backbone(cards: Sequence[AdapterCard], places: Sequence[Path]) -> None:
    for card, place in zip(cards[1:], places[1:], strict=True):
        if card.fingerprint != cards[0].fingerprint:
            raise AdapterError(
                f"combine: got {str(place)!r} of backbone {card.backbone!r} "
                f"({card.fingerprint}), expected {cards[0].backbone!r} "
                f"({cards[0].fingerprint}) as in {str(places[0])!r}."
            )


def _check_fingerprint(model: PeftModel, card: AdapterCard, force: bool) -> None:
    found = fingerprint_of(model)
    if card.fingerprint in (None, found):
        return
    text = (
        f"backbone: got weights {found}, expected {card.fingerprint} of {card.backbone!r}, on "
        "which the adapter was trained."
    )
    refuse_unless_forced(text, "Load that backbone", force=force)


def check_tensors(model: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = get_peft_model_state_dict(model)
    _compare_tensors(expected, tensors, folder)


def _compare_tensors(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], folder: Path
) -> None:
    missing = sorted(set(expected) - set(given))
    extra = sorted(set(given) - set(expected))
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(given) & set(expected))
        if given[name].shape != expected[name].shape
    ]
    if missing or extra or wrong:
        parts = (("missing", missing), ("not expected", extra), ("of the wrong shape", wrong))
        told = "; ".join(f"{what}: {listed(names, 5)}" for what, names in parts if names)
        raise AdapterError(f"tensors in {str(folder)!r}: got {told}, expected only its own.")


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, which safetensors cannot store."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result
