"""The lean step in your own training: a plain loop, transformers' Trainer, Lightning."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vitune.backbones import find_sites
from vitune.errors import BackboneError, VituneError
from vitune.extras import import_extra
from vitune.training.last_block import class_tail, lean_training

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
"""Attributes by which timm's and transformers' modules declare that they recompute activations."""


def lean_step(model: nn.Module | None = None) -> LeanStep:
    """The memory savings of `vitune train` in your own training loop.

        with vitune.lean_step(model):                       # around a loop, evaluation included
            for images, labels in loader: ...
        Trainer(..., callbacks=[vitune.lean_step().for_trainer()])
        lightning.Trainer(..., callbacks=[vitune.lean_step().for_lightning()])

    Gradients are the same: activations that are cheap to recompute are not kept, and the layers
        after the last attention see only the class token if only that is read.

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
        self._tail = class_tail(model)
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
        if model.training and torch.is_grad_enabled():
            context = lean_training(self._tail, checkpointing=_is_checkpointed(model))
            context.__enter__()
        self._open.append(context)

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


def _is_checkpointed(model: nn.Module) -> bool:
    return any(getattr(part, name, False) for part in model.modules() for name in CHECKPOINTING)
