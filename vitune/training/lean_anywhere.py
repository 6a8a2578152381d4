"""The lean step in your own training: a plain loop, transformers' Trainer, Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from vitune.backbones import find_sites
from vitune.errors import BackboneError, VituneError
from vitune.extras import import_extra
from vitune.training.last_block import class_tail, lean_training

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
"""Attributes by which timm's and transformers' modules declare that they recompute activations."""

COMPILED = "lean_step: the model is compiled, so its steps stay as torch.compile made them."


def lean_step(model: nn.Module | None = None) -> LeanStep:
    """The memory savings of `vitune train` in your own training loop.

        with vitune.lean_step(model):                       # around a loop, evaluation included
            for images, labels in loader: ...
        Trainer(..., callbacks=[vitune.lean_step().for_trainer()])
        lightning.Trainer(..., callbacks=[vitune.lean_step().for_lightning()])

    Gradients are the same: activations that are cheap to recompute are not kept, and the layers
    after the last attention see only the class token if only that is read. Whether it is, the
    gradients of the first step tell: that step is not shortened. A loss that reads other tokens
    from some later step on needs a new `lean_step`. Steps of a compiled model are unchanged.

    Args:
        model: any network, with an adapter or without; a callback finds it itself.
    """
    return LeanStep(model)


class LeanStep:
    """Within the context, or while its callback is active, training passes of the model are lean.

    Passes in evaluation mode or without gradients are unchanged. The backward pass may run after
    the context is left.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self._handles: list[Any] = []
        self._open: list[AbstractContextManager[None] | None] = []
        self._tail: tuple[nn.Module, ...] = ()
        self._reads = ReadTokens()

    def __enter__(self) -> LeanStep:
        if self.model is None:
            raise VituneError("lean_step: got no model, expected lean_step(model) in a 'with'.")
        self.begin(self.model)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def begin(self, model: nn.Module) -> None:
        """Make training passes of `model` lean until `end`."""
        self.end()
        if _is_compiled(model):
            warnings.warn(COMPILED, stacklevel=2)
        self._tail, self._reads = class_tail(model), ReadTokens()
        self._handles = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def end(self) -> None:
        """Restore the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def for_trainer(self) -> Any:
        """A callback for transformers' `Trainer`."""
        from transformers import TrainerCallback

        lean = self

        class LeanCallback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                lean.begin(lean.model or given["model"])

            def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                lean.end()

        return LeanCallback()

    def for_lightning(self) -> Any:
        """A callback for Lightning's `Trainer`.

        Raises:
            VituneError: Lightning is not installed.
        """
        import_extra("lean_step", "lightning", "lightning.pytorch")
        from lightning.pytorch import Callback

        lean = self

        class LeanCallback(Callback):
            def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
                lean.begin(lean.model or network_in(pl_module))

            def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
                lean.end()

        return LeanCallback()

    def _enter(self, model: nn.Module, _: Any) -> None:
        context = None
        is_step = model.training and torch.is_grad_enabled()
        if is_step and not torch.compiler.is_compiling() and not _is_compiled(model):
            context = self._lean(is_checkpointed=_is_checkpointed(model))
            context.__enter__()
        self._open.append(context)

    @contextmanager
    def _lean(self, *, is_checkpointed: bool) -> Iterator[None]:
        # A block that is computed again in the backward pass must then see what it saw before.
        tail = () if is_checkpointed else self._tail
        shortened = tail if self._reads.only_first else ()
        with self._reads.watching(tail), lean_training(shortened, checkpointing=is_checkpointed):
            yield

    def _leave(self, *_: Any) -> None:
        context = self._open.pop()
        if context is not None:
            context.__exit__(None, None, None)


def network_in(module: nn.Module) -> nn.Module:
    """The network that a Lightning module trains: a PEFT model inside it, or a child with blocks.

    Raises:
        VituneError: no such network is recognised.
    """
    adapted = next((part for part in module.modules() if isinstance(part, PeftModel)), None)
    if adapted is not None:
        return adapted
    for child in module.children():
        try:
            find_sites(child)
        except BackboneError:
            continue
        return child
    raise VituneError(
        f"lean_step: got {type(module).__name__} without a recognised network, expected one. "
        "Pass it: lean_step(model)."
    )


class ReadTokens:
    """Whether the loss reads only the first token of a layer's output, told by its gradient.

    Until a backward pass has shown it, the answer is no, and for good as soon as any other token
    has a gradient. Where the first has none either, as under a classifier of zeros, nothing is
    learnt yet.
    """

    def __init__(self) -> None:
        self._found: bool | None = None

    @property
    def only_first(self) -> bool:
        """Whether it was seen that no other token is read."""
        return self._found is True

    @contextmanager
    def watching(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Within: outputs (b, n, d) of `layers` are watched, unless the answer is known."""
        handles = []
        if self._found is None:
            handles = [layer.register_forward_hook(self._watch) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad and output.dim() == 3:
            output.register_hook(self._learn)

    def _learn(self, gradient: Tensor) -> None:
        if gradient[:, 1:].count_nonzero():
            self._found = False
        elif self._found is None and gradient[:, 0].count_nonzero():
            self._found = True


def _is_checkpointed(model: nn.Module) -> bool:
    return _has_part(model, CheckpointWrapper, CHECKPOINTING)


def _is_compiled(model: nn.Module) -> bool:
    return _has_part(model, OptimizedModule, ("_compiled_call_impl",))


def _has_part(model: nn.Module, kind: type[nn.Module], marks: Sequence[str]) -> bool:
    """Whether a part is of this kind, or has one of these attributes of its own set.

    It is asked in every step: `getattr` takes several times as long where modules have none.
    """
    return any(
        isinstance(part, kind) or any(vars(part).get(mark) for mark in marks)
        for part in model.modules()
    )
