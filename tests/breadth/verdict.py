"""One case of the breadth test: a method on a network is right, or refused, or wrong."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from vitune.backbones import logits_of
from vitune.errors import VituneError
from vitune.methods import METHODS, OWN, MethodLayer

TOLERANCE = 1e-4
"""Of the largest logit; networks run in float64, some compute parts in float32."""


@dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Args:
        kind: "right", "refused" or "wrong".
        text: the refusal, or what was wrong; '' where all is right.
    """

    kind: str
    text: str = ""


def judge(model: nn.Module, x: Tensor, method: str, arguments: Mapping[str, Any]) -> Verdict:
    """Inject, train a step, save, load, merge and unload `method` on copies of `model`.

    Args:
        model: in evaluation mode; not changed.
        x: images it takes, (b, 3, h, w).
    """
    base = logits(model, x)
    chosen = METHODS[method]
    adapted = copy.deepcopy(model)
    try:
        torch.manual_seed(3)
        config = chosen.configure(adapted, arguments)
        adapted = get_peft_model(adapted, config).eval()
    except VituneError as refusal:
        return _judge_refusal(adapted, x, base, str(refusal))
    except Exception as error:
        return Verdict("wrong", f"injection: {type(error).__name__}: {_line(error)}")
    try:
        for check in (_starts_as_declared, _trains_what_it_declares, _survives):
            text = check(adapted, model, x, base, method)
            if text:
                return Verdict("wrong", text)
    except Exception as error:
        step = check.__name__.strip("_")
        return Verdict("wrong", f"{step}: {type(error).__name__}: {_line(error)}")
    return Verdict("right")


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return logits_of(model(x))


def difference(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| as a part of the largest |expected|; infinite where it is NaN."""
    found = (actual - expected).abs().max() / expected.abs().max()
    return float("inf") if found.isnan() else found.item()


def _judge_refusal(model: nn.Module, x: Tensor, base: Tensor, text: str) -> Verdict:
    if any(isinstance(module, MethodLayer) for module in model.modules()):
        return Verdict("wrong", f"refused, yet layers were put in: {text}")
    if not torch.equal(logits(model, x), base):
        return Verdict("wrong", f"refused, yet the model changed: {text}")
    if "got" not in text or "expected" not in text:
        return Verdict("wrong", f"refused without what was got and expected: {text}")
    return Verdict("refused", text)


def _starts_as_declared(
    adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor, method: str
) -> str:
    found = difference(logits(adapted, x), base)
    if found == float("inf"):
        return "start: not finite"
    if adapted.peft_config["default"].identity_at_init and found > TOLERANCE:
        return f"start: moved by {found:.1e}, declared as the identity"
    return ""


def _trains_what_it_declares(
    adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor, method: str
) -> str:
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    labels = torch.arange(len(x))
    logits_of(adapted(x)).log_softmax(-1)[labels, labels].sum().neg().backward()
    idle = [n for n, p in adapted.named_parameters() if n in trained and p.grad is None]
    if idle:
        return f"gradient: none for {idle[0]} and {len(idle) - 1} more"
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=0.05)
                parameter.grad = None
    moved = {n for n, value in adapted.named_parameters() if not torch.equal(value, before[n])}
    if moved - trained:
        return f"moved: {sorted(moved - trained)[0]} is not declared"
    own = {n for n in trained if "modules_to_save" not in n}
    declared = sum(dict(adapted.named_parameters())[n].numel() for n in own)
    config = adapted.peft_config["default"]
    from vitune.backbones import find_sites

    expected = config.num_parameters(model, config.choose(find_sites(model)))
    if declared != expected:
        return f"count: {declared} train, {expected} by the formula"
    return ""


def _survives(adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor, method: str) -> str:
    expected = logits(adapted, x)
    if not torch.isfinite(expected).all():
        return "after a step: not finite"
    if difference(expected, base) < 1e-7:
        return "after a step: nothing changed"
    with adapted.disable_adapter():
        if difference(logits(adapted, x), base) > 1e-9:
            return "disabled: not the base"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
        torch.manual_seed(9)
        loaded = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    found = difference(logits(loaded, x), expected)
    if found > 1e-9:
        return f"reloaded: differs by {found:.1e}"
    if OWN[method].mergeable:
        merged = loaded.merge_and_unload(safe_merge=True)
        found = difference(logits(merged, x), expected)
        if found > TOLERANCE:
            return f"merged: differs by {found:.1e}"
        if any(isinstance(module, MethodLayer) for module in merged.modules()):
            return "merged: layers are left"
    unloaded = adapted.unload()
    if set(unloaded.state_dict()) != set(model.state_dict()):
        return "unloaded: other tensors than the base"
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
