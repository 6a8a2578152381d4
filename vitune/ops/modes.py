"""PyTorch's modes around a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from vitune.ops.hardware import without_autocast


@contextmanager
def usual_modes() -> Iterator[None]:
    """Within: gradients, no autocast, float32 by default, whatever the caller's modes are.

    Also a decorator. The default number format belongs to the whole process, and is only touched
    where it is another.
    """
    default = torch.get_default_dtype()
    with ExitStack() as held, torch.inference_mode(False), torch.enable_grad():
        for device_type in ("cpu", "cuda"):
            held.enter_context(without_autocast(device_type))
        if default != torch.float32:
            held.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield
