"""PyTorch's modes around a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def usual_modes() -> Iterator[None]:
    """Within: gradients, no autocast, float32 by default, whatever the caller's modes are.

    Also a decorator. The default number format belongs to the whole process, and is only touched
    where it is another.
    """
    default = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad(), _outside_autocast():
        if default == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Within: as if the caller were in no autocast context.

    To switch autocast off is not enough. Only the outermost context forgets the weights that it
    has cast: those of a training step inside another context would be the first step's for ever.
    """
    torch.autocast_increment_nesting()
    depth = torch.autocast_decrement_nesting()
    enabled = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    if depth:
        torch.clear_autocast_cache()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
