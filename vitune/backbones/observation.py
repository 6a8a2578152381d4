"""What a network does with its tokens, observed by sending one noise image through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitune.backbones.pixels import model_image_size
from vitune.backbones.structure import network

USUAL_SIZES = (224, 256, 384, 192, 160, 128, 96, 64, 32)
"""Image sizes in pixels to try if a network does not declare its own."""


@dataclass(frozen=True)
class Call:
    """One call of a module, by shapes.

    Args:
        given: of the first positional argument; () if that is not a tensor.
        returned: of the output, or of the first of several; () if that is not a tensor.
        num_further: tensors among the other arguments, such as masks and positions.
    """

    given: tuple[int, ...]
    returned: tuple[int, ...]
    num_further: int


@dataclass(frozen=True)
class Observation:
    """The observation.

    Args:
        image_size: (height, width) in pixels of the image.
        calls: by module name, in order; empty for a module that was not called.
    """

    image_size: tuple[int, int]
    calls: dict[str, tuple[Call, ...]]


def observe(model: nn.Module, names: Iterable[str]) -> Observation | None:
    """The calls of the modules `names` during one image; nothing in the network changes.

    None if the network accepts neither a size that it declares nor a usual one.
    """
    names = list(names)
    for size in _sizes(model):
        with _recorded(model, names) as calls:
            try:
                run_once(model, size)
            except Exception:  # any error about an unsupported size
                continue
        return Observation(size, {name: tuple(found) for name, found in calls.items()})
    return None


def run_once(model: nn.Module, image_size: tuple[int, int]) -> Any:
    """The output of `model` for one noise image, in evaluation mode and without gradients.

    Raises:
        Exception: whatever the network raises.
    """
    reference = next(p for p in model.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, 3, *image_size), generator=generator, device="cpu")
    image = noise.to(dtype=reference.dtype, device=reference.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # The network may draw numbers (token dropping); the caller's random state is restored.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return model(image)
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Call]]]:
    calls: dict[str, list[Call]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(_Recorder(calls[name]), with_kwargs=True)
        for name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """A forward hook that records calls."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def __call__(self, _: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        further = sum(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values()))
        self.calls.append(Call(_shape(args[0] if args else None), _shape(first), further))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Image sizes to try, those that the network declares first."""
    root: Any = network(model)
    named: list[Any] = [model_image_size(getattr(root, "config", None))]
    for part in root.modules():
        named += [getattr(part, name, None) for name in ("img_size", "image_size")]
    config = getattr(root, "pretrained_cfg", None)
    named.append(config["input_size"][1:] if config else None)
    found: dict[tuple[int, int], None] = {}
    for size in (*named, *USUAL_SIZES):
        pair = (size, size) if isinstance(size, int) else size
        if isinstance(pair, tuple | list) and len(pair) == 2:
            found[int(pair[0]), int(pair[1])] = None
    return list(found)
