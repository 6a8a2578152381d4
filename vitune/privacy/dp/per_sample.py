"""One gradient per image: in closed form where every trained layer has one, else by torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitune.backbones import logits_of
from vitune.errors import VituneError
from vitune.methods import MethodLayer

Found = list[tuple[nn.Parameter, Tensor]]
Rule = Callable[[Tensor, Tensor], Found]
"""(input of a layer, gradient of its output) -> gradients of its parameters, a line per image."""
TRIED, MOVED, AGREES = 2, 0.02, 0.02
"""Images of a trial, how far parameters move for it, and the largest relative error it accepts."""
NORMS_OVER_IMAGES = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
NOT_ALONE = (
    "--dp-epsilon: got a method without gradients per image ({}), expected one whose layers treat "
    "each image alone."
)


class PerSampleGradients:
    """Sets `grad_sample` (b, *shape) of every trained parameter of a model.

    Args:
        model: its trained parameters are fixed from here on.
        label_smoothing: of the cross-entropy.

    Source: the closed forms are those of Li et al. (2022) for linear layers and vitune's own for
        scales: g_in = Σ x ⊙ ((dy ⊙ s_out) W), g_out = Σ dy ⊙ ((x ⊙ s_in) Wᵀ).
    """

    def __init__(self, model: PeftModel, *, label_smoothing: float = 0.0) -> None:
        self.model, self.smoothing = model, label_smoothing
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.rules = {module: rule for module, rule, _ in _rules(model)}
        covered = {id(p) for *_, parameters in _rules(model) for p in parameters}
        self.is_closed = {id(p) for p in self.parameters.values()} <= covered
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, NORMS_OVER_IMAGES)]
        self.norms = dict(norms)

    def check_norms(self) -> None:
        """See that no batch norm mixes images.

        Raises:
            VituneError: one is in training mode.
        """
        for name, module in self.norms.items():
            if module.training:
                raise VituneError(
                    f"--dp-epsilon: got a batch norm in training mode at {name!r}, expected "
                    "statistics that no batch changes: one image would show in all gradients. "
                    "Put it in evaluation mode, or choose a backbone with layer norms."
                )

    def check(self, image_size: tuple[int, int]) -> None:
        """See on random images that each one's gradient is that of the image alone.

        A closed form that fails (a layer that averages over the batch, one module used in two
        places) is given up for torch.func.

        Raises:
            VituneError: that fails too.
        """
        generator = torch.Generator().manual_seed(0)
        like = next(self.model.parameters())
        images = torch.randn(TRIED, 3, *image_size, generator=generator).to(like)
        smoothing, was_training, self.smoothing = self.smoothing, self.model.training, 0.0
        self.model.eval()
        try:
            with _moved(self.parameters.values(), generator):
                self.is_closed = self.is_closed and self._agrees(images)
                if not self.is_closed and not self._agrees(images):
                    raise VituneError(NOT_ALONE.format("they differ from those of one image"))
        finally:
            self.smoothing = smoothing
            self.model.train(was_training)
            for parameter in self.parameters.values():
                parameter.grad_sample = None

    def _agrees(self, images: Tensor) -> bool:
        with torch.no_grad():
            num_classes = logits_of(self.model(images)).shape[-1]
        targets = torch.arange(len(images), device=images.device) % num_classes
        try:
            self(images, targets)
        except RuntimeError:  # of a closed form, say by a layer whose output needs no gradient
            return False
        found = {name: p.grad_sample for name, p in self.parameters.items()}
        # Afterwards: torch.func parts parameters that a method holds in several places.
        each = [self._alone(images[i : i + 1], targets[i : i + 1]) for i in range(len(images))]
        wanted = {name: torch.stack([one[name].detach() for one in each]) for name in found}
        whole = torch.stack([value.norm() for value in wanted.values()]).norm()
        return all(
            bool((found[name] - value).norm() <= AGREES * (value.norm() + AGREES * whole))
            for name, value in wanted.items()
        )

    def _alone(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The plain gradient; with a graph of its own a method rounds and draws nothing."""
        # Fused attention has no second derivative on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(logits_of(self.model(image)), target)
            found = torch.autograd.grad(
                loss, list(self.parameters.values()), create_graph=True, allow_unused=True
            )
        pairs = zip(self.parameters.items(), found, strict=True)
        return {n: torch.zeros_like(p) if value is None else value for (n, p), value in pairs}

    def __call__(self, images: Tensor, targets: Tensor) -> float:
        """Fill in `grad_sample`; returns the mean loss.

        Shapes: images (b, 3, h, w); targets (b,). With b = 0 there are gradients of 0 images.
        """
        for parameter in self.parameters.values():
            parameter.grad_sample = None
        if len(images) == 0:
            for parameter in self.parameters.values():
                empty = parameter.new_zeros(0, *parameter.shape)
                parameter.grad_sample = empty
            return 0.0
        return self._closed(images, targets) if self.is_closed else self._traced(images, targets)

    def _closed(self, images: Tensor, targets: Tensor) -> float:
        with self._frozen(), _watched(self.rules):
            images = images.detach().requires_grad_()
            logits = logits_of(self.model(images))
            loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)
            torch.autograd.grad(loss, images)
        for parameter in self.parameters.values():
            if parameter.grad_sample is None:
                unused = parameter.new_zeros(len(images), *parameter.shape)
                parameter.grad_sample = unused
        return loss.item() / len(images)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Within: no parameter asks autograd for the summed gradient, which nobody needs."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)

    def _traced(self, images: Tensor, targets: Tensor) -> float:
        def loss_of(values: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self.model, values, (image[None],))
            return F.cross_entropy(logits_of(outputs), target[None], label_smoothing=self.smoothing)

        values = {name: parameter.detach() for name, parameter in self.parameters.items()}
        per_image = torch.func.vmap(
            torch.func.grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different"
        )
        try:
            # Fused attention has no rule for batches of batches.
            with sdpa_kernel(SDPBackend.MATH):
                found, losses = per_image(values, images, targets)
        except RuntimeError as error:
            raise VituneError(NOT_ALONE.format(_first_line(error))) from error
        for name, parameter in self.parameters.items():
            parameter.grad_sample = found[name].detach()
        return float(losses.mean())


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120]


@contextmanager
def _moved(parameters: Iterable[nn.Parameter], generator: torch.Generator) -> Iterator[None]:
    """Within: parameters a little off their start, where a head of zeros would hide the rest."""
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
    with torch.no_grad():
        for parameter, before in kept:
            noise = torch.randn(before.shape, generator=generator).to(before)
            parameter.add_(MOVED * noise)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)


@contextmanager
def _watched(rules: dict[nn.Module, Rule]) -> Iterator[None]:
    """Within: every module with a rule adds to the `grad_sample` of its parameters."""
    handles = [module.register_forward_hook(_hook(rule)) for module, rule in rules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rule: Rule) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0].detach()

        def add(grad: Tensor) -> None:
            for parameter, value in rule(x, grad):
                before = getattr(parameter, "grad_sample", None)
                total = value if before is None else before + value
                parameter.grad_sample = total  # type: ignore[attr-defined]

        output.register_hook(add)

    return watch


def _rules(model: nn.Module) -> Iterator[tuple[nn.Module, Rule, list[nn.Parameter]]]:
    """Modules with a closed form for trained parameters, and these parameters."""
    for module in model.modules():
        if isinstance(module, MethodLayer):
            adapters = module.adapters_here()
            if module.has_per_sample and len(adapters) == 1:
                yield module, _layer_rule(module, adapters[0]), _of(module, adapters[0])
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
            own = {name: _trained(module, name) for name in ("weight", "bias")}
            given = {name: value for name, value in own.items() if value is not None}
            if given and (isinstance(module, nn.Linear) or set(given) == {"bias"}):
                yield module, _own_rule(module, given), list(given.values())


def _of(layer: MethodLayer, adapter: str) -> list[nn.Parameter]:
    values = (layer.parameter(name, adapter) for name in layer.adapter_layer_names)
    return [value for value in values if isinstance(value, nn.Parameter)]


def _trained(module: nn.Module, name: str) -> nn.Parameter | None:
    """A trained parameter of a module, or what a method trains in its place."""
    stand_ins = getattr(module, "parametrizations", None)
    if stand_ins is not None and name in stand_ins:
        layer = stand_ins[name][0]
        adapters = layer.adapters_here() if isinstance(layer, MethodLayer) else []
        found = layer.parameter("value", adapters[0]) if len(adapters) == 1 else None
    else:
        found = getattr(module, name, None)
    return found if isinstance(found, nn.Parameter) and found.requires_grad else None


def _layer_rule(layer: MethodLayer, adapter: str) -> Rule:
    def rule(x: Tensor, grad: Tensor) -> Found:
        found = layer.per_sample_gradients(adapter, x, grad)
        values = {name: layer.parameter(name, adapter) for name in found}
        return [(p, found[n]) for n, p in values.items() if isinstance(p, nn.Parameter)]

    return rule


def _own_rule(module: nn.Module, given: dict[str, nn.Parameter]) -> Rule:
    """Weight and bias of a linear layer; the bias of a norm or a convolution."""

    def rule(x: Tensor, grad: Tensor) -> Found:
        if isinstance(module, nn.Conv2d):
            grad = grad.flatten(2).mT  # (b, n, c)
        grad = grad.reshape(len(grad), -1, grad.shape[-1])  # (b, n, o)
        found: Found = []
        if "weight" in given:
            x = x.reshape(len(x), -1, x.shape[-1]).to(grad.dtype)
            found.append((given["weight"], grad.mT @ x))
        if "bias" in given:
            found.append((given["bias"], grad.sum(1)))
        return found

    return rule
