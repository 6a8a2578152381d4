"""One vector per image and block, recorded while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from vitune.analysis.blocks import block_names
from vitune.backbones.sites import find_sites, head_name
from vitune.backbones.structure import WRAPPED, root_prefix
from vitune.errors import VituneError

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""Names under which timm, transformers and torchvision keep the class token."""

Features = dict[str, Tensor]
"""Block name -> (b, d), in order of depth."""

HEAD_INPUT = "head input"
"""Key of the head's input."""


@contextmanager
def recording(network: nn.Module, with_head: bool) -> Iterator[Callable[[Tensor], Features]]:
    """A function from a batch to the features of every block, through forward hooks.

    Args:
        network: a plain or PEFT network with block sites; a convolutional one without them is
            read at the modules around its convolutions.
        with_head: also record the input of the network's head, under HEAD_INPUT; the output if the
            network has no head.

    Raises:
        BackboneError: no blocks are recognised.
        VituneError: when called, for `with_head` on a network whose output is not a (b, d) tensor.
    """
    from_token = has_class_token(network)
    found: Features = {}
    handles = []
    for name in block_names(network, find_sites(network)):
        block = network.get_submodule(name)
        channels_first = any(isinstance(module, nn.Conv2d) for module in block.modules())
        keep = partial(_keep, found, _clean(network, name), from_token, channels_first)
        handles.append(block.register_forward_hook(keep))
    head = head_name(network) if with_head else None

    def keep_input(module: nn.Module, inputs: Any) -> None:
        found[HEAD_INPUT] = inputs[0].float().cpu()

    if head is not None:
        handles.append(network.get_submodule(head).register_forward_pre_hook(keep_input))
    place = next(network.parameters())

    def record(batch: Tensor) -> Features:
        found.clear()
        output = network(batch.to(place.device, place.dtype))
        if with_head and head is None:
            found[HEAD_INPUT] = _vectors(output)
        return dict(found)

    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _keep(
    found: Features,
    name: str,
    from_token: bool,
    channels_first: bool,
    module: nn.Module,
    inputs: Any,
    output: Any,
) -> None:
    """The forward hook: one vector per image."""
    first = output[0] if isinstance(output, tuple) else output
    found[name] = feature(first, from_token, channels_first).float().cpu()


def _clean(network: nn.Module, name: str) -> str:
    """A module's name without the parts that PEFT adds."""
    below = name.removeprefix(root_prefix(network)).removeprefix(".")
    return ".".join(step for step in below.split(".") if step not in WRAPPED)


def feature(output: Tensor, from_token: bool, channels_first: bool) -> Tensor:
    """One vector per image: the first token, or the mean over tokens or positions.

    Shapes: output (b, n, d), (b, h, w, d), or (b, d, h, w) with `channels_first`; result (b, d).
    """
    if output.ndim == 3:
        return output[:, 0] if from_token else output.mean(1)
    if output.ndim == 4:
        return output.mean((2, 3)) if channels_first else output.mean((1, 2))
    return output.flatten(1)


def has_class_token(network: nn.Module) -> bool:
    """Whether one of the network's parameters has the name of a class token (CLASS_TOKENS)."""
    names = (name.split(".") for name, _ in network.named_parameters())
    return any(not set(CLASS_TOKENS).isdisjoint(steps) for steps in names)


def _vectors(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise VituneError(
            f"head: got a network without a head whose output is {got!r}, expected vectors (b, d) "
            "to feed the base's head with."
        )
    return output.float().cpu()
