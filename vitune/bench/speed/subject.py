"""One method on one backbone, ready to be timed: its step is the step of vitune's training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.adapters import attach
from vitune.backbones import head_names, load_backbone, logits_of
from vitune.bench.speed.textbook import NAME as TEXTBOOK
from vitune.bench.speed.textbook import textbook
from vitune.errors import VituneError, nearest
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.methods import METHODS
from vitune.training.last_block import class_tail, lean_training
from vitune.training.optimiser import new_optimiser
from vitune.training.precision import NUMBER_FORMATS
from vitune.training.speed_presets import FASTER, PRESETS

NUM_CLASSES = 100
USUAL_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"lora": {"r": 8}, "hira": {"r": 1}}
FLAGS = ("plain", "checkpointing", "compile", *FASTER)
TEXTBOOK_FLAGS = ("fused", "lean")
"""The flags every method has unless it is `plain`; the textbook has them only if named."""


@dataclass(frozen=True)
class Contestant:
    """The subject of a measurement: a method, its arguments and how its step is run.

    Args:
        label: as written, `METHOD[+FLAG][+ARGUMENT=VALUE]...`; the flags `fast` and `fastest` are
            presets of `--speed`, and `tokens=...` is what `--tokens` takes.
        method: a name that `--method` takes, or `rlrr-textbook`.
        arguments: of the method.
        plain: the step of an ordinary training loop, without vitune's lean step.
        checkpointing: activations are recomputed block by block.
        compiled: the model is compiled with `torch.compile`.
        fused: attention uses PyTorch's kernel or a faster one, not plain products.
        tokens: which tokens are dropped or merged.
    """

    label: str
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    checkpointing: bool = False
    compiled: bool = False
    fused: bool = True
    tokens: TokenPlan = field(default_factory=TokenPlan)

    @classmethod
    def parse(cls, label: str) -> Contestant:
        """A contestant from its label, e.g. `lora+r=16+plain`.

        Raises:
            VituneError: an unknown method or flag; the nearest names are given.
        """
        method, *options = label.strip().split("+")
        known = [*METHODS, TEXTBOOK]
        if method not in known:
            raise VituneError(
                f"--methods: got {method!r}, expected known methods. {nearest(method, known)}"
            )
        arguments = dict(USUAL_ARGUMENTS.get(method, {}))
        given = (option.partition("=") for option in options if "=" in option)
        arguments.update({name: value for name, _, value in given})
        flags = [option for option in options if "=" not in option]
        preset = next((flag for flag in flags if flag in FASTER), None)
        tokens = str(arguments.pop("tokens", PRESETS[preset]["tokens"] if preset else "keep"))
        if preset and method in METHODS:
            arguments = {**METHODS[method].speed_arguments.get(preset, {}), **arguments}
        is_textbook = method == TEXTBOOK
        allowed = (*FLAGS, *TEXTBOOK_FLAGS) if is_textbook else FLAGS
        for flag in flags:
            if flag not in allowed:
                raise VituneError(
                    f"--methods: got {label!r} with {flag!r}, expected {', '.join(allowed)} or "
                    f"NAME=VALUE after '+'. {nearest(flag, allowed)}"
                )
        return cls(
            label=label.strip(),
            method=method,
            arguments=arguments,
            plain="plain" in flags or (is_textbook and "lean" not in flags),
            checkpointing="checkpointing" in flags,
            compiled="compile" in flags,
            fused=not is_textbook or "fused" in flags,
            tokens=TokenPlan.parse(tokens),
        )

    @property
    def gets(self) -> tuple[str, ...]:
        """The optimisations of its step that others may lack, in words."""
        step = "torch.compile" if self.compiled else "plain step" if self.plain else "lean step"
        attention = "fused attention" if self.fused else "attention by products"
        more = ("checkpointing",) if self.checkpointing else ()
        fewer = (str(self.tokens),) if self.tokens.in_training else ()
        return (step, attention, *more, *fewer)


@dataclass(frozen=True)
class StepTime:
    """Durations of one training step in milliseconds."""

    forward_ms: float
    backward_ms: float
    optimiser_ms: float

    @property
    def step_ms(self) -> float:
        return self.forward_ms + self.backward_ms + self.optimiser_ms


class Subject:
    """A contestant built on a backbone with random weights.

    Args:
        backbone: a name of `load_backbone`.
        image_size: pixels; None means the backbone's own.
    """

    def __init__(
        self,
        contestant: Contestant,
        backbone: str,
        device: torch.device,
        image_size: int | None = None,
    ) -> None:
        self.contestant, self.device = contestant, device
        loaded = load_backbone(
            backbone, num_classes=NUM_CLASSES, image_size=image_size, pretrained=False
        )
        self.image_size = loaded.preprocessing.image_size
        if contestant.checkpointing:
            _checkpoint(loaded.model, contestant.label)
        if contestant.method == TEXTBOOK:
            tail = _names_of(loaded.model, class_tail(loaded.model))
            self.model: nn.Module = textbook(loaded.model, fused=contestant.fused)
        else:
            self.model = attach(loaded, contestant.method, contestant.arguments)
            tail = _names_of(self.model, class_tail(self.model))
        reduce_tokens(self.model, contestant.tokens)
        self.model = self.model.to(device).train()
        modules = [self.model.get_submodule(name) for name in tail]
        self.tail = () if contestant.plain else tuple(modules)
        self.network = self.model
        if contestant.compiled:
            self.network = cast(nn.Module, torch.compile(self.model))
        self.optimiser = new_optimiser(self.model, lr=1e-3, weight_decay=0.01)

    def images(self, batch: int) -> tuple[Tensor, Tensor]:
        """Random images of the backbone's size, and labels."""
        generator = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 3, *self.image_size, generator=generator)
        labels = torch.randint(NUM_CLASSES, (batch,), generator=generator)
        return images.to(self.device), labels.to(self.device)

    def step(self, images: Tensor, labels: Tensor, precision: str) -> StepTime:
        """One training step, timed."""
        marks = [self._now()]
        with self._lean():
            with _autocast(self.device, precision):
                logits = logits_of(self.network(images))
            loss = F.cross_entropy(logits.float(), labels)
            marks.append(self._now())
            loss.backward()
        marks.append(self._now())
        self.optimiser.step()
        self.optimiser.zero_grad()
        marks.append(self._now())
        forward, backward, optimiser = ((end - start) * 1e3 for start, end in pairwise(marks))
        return StepTime(forward, backward, optimiser)

    @torch.inference_mode()
    def inference_ms(self, images: Tensor, precision: str) -> float:
        """One forward pass in evaluation mode."""
        self.network.eval()
        start = self._now()
        with _autocast(self.device, precision):
            self.network(images)
        return (self._now() - start) * 1e3

    def num_trainable(self) -> int:
        """Trained parameters without the head."""
        return sum(value.numel() for value in self._adapter().values())

    def adapter_bytes(self) -> int:
        """Size of the adapter as a safetensors file, in fp16 and without the head."""
        stored = {name: value.half().contiguous() for name, value in self._adapter().items()}
        return len(save(stored)) if stored else 0

    def _adapter(self) -> dict[str, Tensor]:
        if isinstance(self.model, PeftModel):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = get_peft_model_state_dict(self.model)
        else:
            state = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        heads = [name.removeprefix("base_model.model.") for name in head_names(self.model)]
        leaves = {name.split(".")[0] for name in heads} or {"head"}
        return {
            name: value.detach().cpu().clone()
            for name, value in state.items()
            if not leaves & set(name.split(".")) and value.is_floating_point()
        }

    @contextmanager
    def _lean(self) -> Iterator[None]:
        how = self.contestant
        if how.plain or how.compiled:
            yield
            return
        with lean_training(self.tail, checkpointing=how.checkpointing):
            yield

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _names_of(model: nn.Module, modules: Sequence[nn.Module]) -> list[str]:
    """The paths of modules in a network, to find their replacements again."""
    return [name for name, module in model.named_modules() if module in modules]


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = NUMBER_FORMATS[precision]
    is_on = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if is_on else None, enabled=is_on)


def _checkpoint(model: nn.Module, label: str) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise VituneError(
            f"--methods: got {label!r} on {type(model).__name__}, expected a backbone that can "
            "recompute its activations (timm's can)."
        )
    cast(Any, model).set_grad_checkpointing(True)
