"""A training step that keeps less: cheap activations are recomputed, the fastest attention is used.

Everything here works on the functions that any network calls: PyTorch's function mode sees the
calls, its saved-tensor hooks see what is kept for the backward pass. No module is replaced or
changed, and outside the context nothing differs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitune.ops.attention import attention, prefers_attention

RECOMPUTED = frozenset({F.gelu, F.silu, F.layer_norm})
"""Cheap functions that keep their input, not their result, for the gradient."""

CASTS = frozenset({Tensor.to, Tensor.bfloat16, Tensor.half, Tensor.float})
"""Also traced when applied to the result of such a function."""


@contextmanager
def lean_step() -> Iterator[None]:
    """Within the context, forward passes keep the inputs of activations and norms, not outputs.

    The output of a GELU, SiLU or LayerNorm that a later layer wants to keep is recomputed from
    what is kept anyway, by the same function of the same numbers: gradients are bit for bit the
    same. Attention without a mask runs as `vitune.ops.attention` if `prefers_attention`. The
    backward pass may run after the context is left. Not for checkpointed blocks: their
    recomputation in the backward pass happens outside this context and would differ.
    """
    origins = Origins()
    with LeanFunctions(origins), saved_tensors_hooks(origins.pack, _unpack):
        yield


@contextmanager
def first_token_only(*modules: nn.Module) -> Iterator[None]:
    """Within the context, each module gets only the first token, (b, 1, d) of (b, n, d).

    Meant for the layers after attention in a network's last block if only the first token is read:
    a residual sum broadcasts the one token to all; only the first is exact. Checkpointed blocks
    also need the backward pass inside the context.
    """
    handles = [module.register_forward_pre_hook(_first_token) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Origin:
    """How a tensor was made: `function(*args, **kwargs)` under an autocast state."""

    made: weakref.ref[Tensor]
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...]
    autocast: tuple[str, torch.dtype, bool]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The tensor, computed again."""
        if self.versions != _versions(self.args, self.kwargs):
            raise RuntimeError(
                f"a tensor given to {self.function.__name__} was changed in place before the "
                "backward pass, so that its result cannot be computed again; leave lean_step out."
            )
        args = tuple(_unpack(value) for value in self.args)
        kwargs = {name: _unpack(value) for name, value in self.kwargs.items()}
        device_type, dtype, is_on = self.autocast
        with torch.autocast(device_type, dtype=dtype, enabled=is_on, cache_enabled=False):
            return self.function(*args, **kwargs)


class Origins:
    """Remembers how recent tensors were made, and replaces them when they are saved."""

    def __init__(self) -> None:
        self._of_storage: dict[int, Origin] = {}

    def add(self, made: Tensor, function: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        """Remember `made` during its lifetime."""
        key = made.untyped_storage().data_ptr()
        known = tuple(self.pack(value) for value in args)
        named = {name: self.pack(value) for name, value in kwargs.items()}
        alive = weakref.ref(made, lambda ended: self._drop(key, ended))
        self._of_storage[key] = Origin(
            alive, function, known, named, _versions(known, named), _autocast(made)
        )

    def pack(self, kept: Any) -> Any:
        """The origin of `kept` if there is one for the same tensor, else `kept`."""
        if not isinstance(kept, Tensor):
            return kept
        if kept.layout is not torch.strided:  # a sparse tensor has no storage of its own
            return kept.detach()
        origin = self._of_storage.get(kept.untyped_storage().data_ptr())
        made = None if origin is None else origin.made()
        if made is None or made._version or _layout(made) != _layout(kept):
            return kept.detach()
        return origin

    def _drop(self, key: int, ended: weakref.ref[Tensor]) -> None:
        """Hold nothing longer than the layers that save it."""
        if key in self._of_storage and self._of_storage[key].made is ended:
            del self._of_storage[key]


class LeanFunctions(TorchFunctionMode):
    """Records the origins of cheap results and chooses the attention."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins = origins

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend(args, kwargs)
        result = func(*args, **kwargs)
        is_cheap = func in RECOMPUTED or (func in CASTS and self._is_known(args[0]))
        if is_cheap and result.requires_grad and result is not args[0]:
            self.origins.add(result, func, args, kwargs)
        return result

    def _is_known(self, tensor: Tensor) -> bool:
        return isinstance(self.origins.pack(tensor), Origin)


def _attend(args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`attention` for three tensors and nothing else that changes the result."""
    is_usual = len(args) == 3 and not any(
        isinstance(value, Tensor) or value not in (None, 0.0, False) for value in kwargs.values()
    )
    if is_usual and torch.is_grad_enabled() and prefers_attention(*args):
        return attention(*args)
    return F.scaled_dot_product_attention(*args, **kwargs)


def _first_token(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0][:, :1], *args[1:])


def _unpack(kept: Any) -> Any:
    return kept() if isinstance(kept, Origin) else kept


def _autocast(tensor: Tensor) -> tuple[str, torch.dtype, bool]:
    """Device, number format and whether autocast is on now."""
    device = tensor.device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    return tuple(v._version for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
