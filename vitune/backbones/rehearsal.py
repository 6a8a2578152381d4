"""Running a model without computing: tensors with shapes and no values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def rehearsed(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context, a copy of `model` with tensor shapes but no values, at no cost.

    The copy acts as a CPU model, because some layers query their device's autocast state.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # some models keep a tensor as an attribute
    played, convert = copy.deepcopy(model), mode.fake_tensor_converter.from_meta_and_device
    for module in played.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None:
                    meta = tensor.detach().to("meta")
                    fake = convert(mode, meta, torch.device("cpu"))
                    tensors[name] = fake.requires_grad_(tensor.requires_grad)
    with mode:
        yield played
