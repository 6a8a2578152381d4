"""A short hash of frozen weights, to check that an adapter meets the backbone it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from vitune.backbones.structure import IN_PROJECTION, STAND_INS, WRAPPED, joined, network
from vitune.errors import BackboneError, nearest

_VERSION = "v1"


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """`v1-` and 16 hex digits of sha256 over (name, shape, value in bfloat16), sorted by name.

    A float32 backbone and its bfloat16 copy agree, as do CPU and GPU, and a backbone before and
    after PEFT wraps it; the adapter's own tensors are never read. Adapters must not be merged.

    Args:
        model: a network or a `PeftModel`.
        names: modules or parameters to read, as named in the bare or in the wrapped network; None
            reads every parameter of the network, the classifier included.

    Raises:
        BackboneError: a name that the network does not have, or no parameter at all.
    """
    parameters = dict(_base_parameters(network(model)))
    chosen = set(parameters) if names is None else _chosen(parameters, names)
    if not chosen:
        raise BackboneError(
            f"fingerprint: got {type(model).__name__} and no parameter to read, "
            f"expected at least one name."
        )
    digest = hashlib.sha256()
    for name in sorted(chosen):
        value = parameters[name].detach()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        # Rounded, so that float32 and bfloat16 copies agree; read as int16, since numpy has no
        # bfloat16, and always low byte first, whatever the machine does.
        rounded = value.to(torch.bfloat16).contiguous().view(torch.int16).cpu()
        digest.update(rounded.numpy().astype("<i2", copy=False).tobytes())
    return f"{_VERSION}-{digest.hexdigest()[:16]}"


def bare_name(name: str) -> str:
    """The name that a module or parameter has in the network before PEFT wraps it."""
    steps = name.split(".")
    while steps[:1] == ["base_model"]:
        steps = steps[2:] if steps[1:2] == ["model"] else steps[1:]
    return ".".join(step for step in steps if step not in WRAPPED)


def _chosen(parameters: dict[str, nn.Parameter], names: Iterable[str]) -> set[str]:
    chosen: set[str] = set()
    for name in names:
        bare = bare_name(name)
        below = {known for known in parameters if known == bare or known.startswith(f"{bare}.")}
        if not below:
            raise BackboneError(
                f"fingerprint name: got {name!r}, expected a module or parameter of the backbone. "
                f"{nearest(bare, parameters)}"
            )
        chosen |= below
    return chosen


def _base_parameters(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """The network's own parameters under bare names; those of wrappers are skipped."""
    wrapped = next((key for key in WRAPPED if module._modules.get(key) is not None), None)
    if wrapped is not None:
        yield from _base_parameters(module.get_submodule(wrapped), name)
        return
    for key, parameter in module.named_parameters(recurse=False):
        yield joined(name, key), parameter
    for key, child in module.named_children():
        if key == STAND_INS:
            for slot, keeper in child.named_children():
                # The frozen original under its own name; its replacement is skipped.
                yield joined(name, slot), keeper.get_parameter("original")
            continue
        if isinstance(module, nn.MultiheadAttention) and key == IN_PROJECTION:
            for leaf, kept in _base_parameters(child):
                yield joined(name, f"{key}_{leaf}"), kept
            continue
        yield from _base_parameters(child, joined(name, key))
