"""The hooks of a wrapped module, called around the module together with its adapters.

transformers records hidden states and feature maps with hooks on each block. They must see what the
network passes on to the next block, so they must not run inside the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

Call = Callable[..., Any]
NOTHING = slice(0, 0)


def has_hooks(module: nn.Module) -> bool:
    """Whether something sees or replaces what enters or leaves `module`, or its gradient."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def without_hooks(module: nn.Module) -> Call:
    """How to call `module` where `with_hooks` calls its hooks."""
    return module.forward if has_hooks(module) else module


def with_hooks(
    module: nn.Module,
    call: Call,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    hidden: tuple[slice, slice] = (NOTHING, NOTHING),
) -> Any:
    """call(*args, **kwargs) between the hooks of `module`, in the order of `nn.Module.__call__`.

    Args:
        call: calls the module by `without_hooks`.
        hidden: consecutive tokens that the hooks do not see: those of args[0], of the output.
    """
    if not has_hooks(module):
        return call(*args, **kwargs)
    shown = (without_tokens(args[0], hidden[0]), *args[1:])
    given, kwargs = _before(module, shown, dict(kwargs))
    is_same = given[0] is shown[0]
    args = (args[0] if is_same else _put_back(given[0], args[0], hidden[0]), *given[1:])
    tracked, args = _tracked(module, args)
    try:
        output = call(*args, **kwargs)
    except Exception:  # as nn.Module does: those hooks are called, and the error goes on
        for key in module._forward_hooks_always_called:
            _called(module, key, given, kwargs, None)
        raise
    output = _after(module, given, kwargs, output, hidden[1])
    return output if tracked is None else tracked.setup_output_hook(output)


def with_tokens(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`output` with its tokens changed: a tensor, or a tuple that begins with one."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def without_tokens(x: Tensor, hidden: slice) -> Tensor:
    """(b, n, d) without the hidden tokens."""
    if hidden.start == hidden.stop:
        return x
    return torch.cat([x[:, : hidden.start], x[:, hidden.stop :]], dim=1)


def _before(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments after the hooks that come before a call."""
    hooks: dict[int, Any] = dict(module._forward_pre_hooks)
    for key, hook in hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(module, args, kwargs) or (args, kwargs)
        else:
            changed = hook(module, args)
            changed = args if changed is None else changed
            args = changed if isinstance(changed, tuple) else (changed,)
    return args, kwargs


def _after(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, hidden: slice
) -> Any:
    """The output after the hooks that follow a call."""
    shown = seen = with_tokens(output, lambda y: without_tokens(y, hidden))
    for key in list(module._forward_hooks):
        changed = _called(module, key, args, kwargs, seen)
        seen = seen if changed is None else changed
    if seen is shown:
        return output
    tokens = output[0] if isinstance(output, tuple) else output
    return with_tokens(seen, lambda y: _put_back(y, tokens, hidden))


def _called(
    module: nn.Module, key: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    hook: Any = module._forward_hooks[key]
    given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
    return hook(module, *given, output)


def _tracked(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What calls the hooks on gradients, None without any, and the arguments seen by it."""
    after, before = module._get_backward_hooks()[0], module._get_backward_pre_hooks()
    if not after and not before:
        return None, args
    tracked = BackwardHook(module, after, before)
    return tracked, tracked.setup_input_hook(args)


def _put_back(x: Tensor, whole: Tensor, hidden: slice) -> Tensor:
    """`x` with the hidden tokens of `whole` at their place."""
    if hidden.start == hidden.stop:
        return x
    start = hidden.start
    return torch.cat([x[:, :start], whole[:, hidden], x[:, start:]], dim=1)
