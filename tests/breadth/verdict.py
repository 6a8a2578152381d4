"""One case of the breadth test: a method on a network is right, or refused, or wrong."""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from vitune.backbones import find_sites, logits_of
from vitune.errors import BackboneError
from vitune.methods import OWN, MethodLayer

METHODS: dict[str, dict[str, Any]] = {
    "rlrr": {"init": "identity"},
    "ssf": {"init": "identity"},
    "hta": {},
    "adaptformer": {},
    "adapter_plus": {},
    "vpt_deep": {},
    "moppa": {},
    "moppa_min": {},
}
"""Methods of every kind, with arguments that let each start at the identity where it can."""

TOLERANCE = 1e-4
"""Of the largest logit; networks run in float64, some compute parts in float32."""

EXACT = 1e-9
NOISE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What became of one case.

    Args:
        kind: "right", "refused" or "wrong".
        text: the refusal, or what was wrong; '' where all is right.
    """

    kind: str
    text: str = ""


class WrongError(Exception):
    """What a case did that it should not have done."""


def judge(model: nn.Module, x: Tensor, base: Tensor, method: str) -> Verdict:
    """Inject `method`, move what trains, save, load, merge and unload, on copies of `model`.

    Args:
        model: in evaluation mode; not changed.
        x: images it takes, (b, 3, h, w).
        base: its logits for them.
    """
    adapted: Any = copy.deepcopy(model)
    try:
        torch.manual_seed(3)
        adapted = get_peft_model(adapted, OWN[method].configure(adapted, METHODS[method])).eval()
    except BackboneError as refusal:
        return _judge_refusal(adapted, model, str(refusal))
    except Exception as error:
        return Verdict("wrong", f"injection: {type(error).__name__}: {_line(error)}")
    for check in (_start, _training, _saving_and_merging):
        try:
            check(adapted, model, x, base)
        except WrongError as wrong:
            return Verdict("wrong", str(wrong))
        except Exception as error:
            return Verdict("wrong", f"{check.__name__}: {type(error).__name__}: {_line(error)}")
    return Verdict("right")


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return logits_of(model(x))


def difference(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| as a part of the largest |expected|; infinite where it is NaN."""
    found = (actual - expected).abs().max() / expected.abs().max()
    return float("inf") if found.isnan() else found.item()


def _judge_refusal(refused: nn.Module, model: nn.Module, text: str) -> Verdict:
    """A refusal leaves the network as it was, and says what it got and expected."""
    state, own = refused.state_dict(), model.state_dict()
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in refused.modules()]
    if any(isinstance(module, MethodLayer) for module in refused.modules()) or any(hooks):
        return Verdict("wrong", f"refused, yet something was put in: {text}")
    if state.keys() != own.keys() or not all(torch.equal(state[k], own[k]) for k in own):
        return Verdict("wrong", f"refused, yet the network changed: {text}")
    if not ("got" in text and "expected" in text):
        return Verdict("wrong", f"refused without what was got and expected: {text}")
    return Verdict("refused", text)


def _start(adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor) -> None:
    found = difference(logits(adapted, x), base)
    if adapted.peft_config["default"].identity_at_init:
        _require(found <= TOLERANCE, f"start: moved by {found:.1e}, declared as the identity")
    else:
        _require(0 < found < float("inf"), f"start: moved by {found:.1e}")


def _training(adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor) -> None:
    """Exactly what is declared gets gradients; then it is moved."""
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    config = adapted.peft_config["default"]
    own = sum(before[name].numel() for name in trained if "modules_to_save" not in name)
    expected = config.num_parameters(model, config.choose(find_sites(model)))
    _require(own == expected, f"count: {own} train, {expected} by the formula")
    logits_of(adapted(x)).log_softmax(-1)[:, 0].sum().neg().backward()
    for name, parameter in adapted.named_parameters():
        _require((parameter.grad is not None) == (name in trained), f"gradient: {name}")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=NOISE)
                parameter.grad = None
    for name, value in adapted.named_parameters():
        _require((not torch.equal(value, before[name])) == (name in trained), f"moved: {name}")


def _saving_and_merging(adapted: PeftModel, model: nn.Module, x: Tensor, base: Tensor) -> None:
    expected = logits(adapted, x)
    _require(torch.isfinite(expected).all(), "trained: not finite")
    _require(difference(expected, base) > 1e-6, "trained: nothing changed")
    with adapted.disable_adapter():
        found = difference(logits(adapted, x), base)
    _require(found <= EXACT, f"disabled: differs from the base by {found:.1e}")
    loaded = _reloaded(adapted, model)
    found = difference(logits(loaded, x), expected)
    _require(found <= EXACT, f"reloaded: differs by {found:.1e}")
    if adapted.peft_config["default"].mergeable:
        merged = loaded.merge_and_unload(safe_merge=True)
        found = difference(logits(merged, x), expected)
        _require(found <= TOLERANCE, f"merged: differs by {found:.1e}")
        left = [m for m in merged.modules() if isinstance(m, MethodLayer)]
        _require(not left, "merged: layers are left")
    plain = adapted.unload().state_dict()
    _require(plain.keys() == model.state_dict().keys(), "unloaded: other tensors than the base")


def _reloaded(adapted: PeftModel, model: nn.Module) -> PeftModel:
    """A copy of the network with the adapter from a folder."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has no configuration of a timm model to look at
        adapted.save_pretrained(folder)
        torch.manual_seed(9)
        loaded: PeftModel = PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return loaded.eval()


def _require(is_so: Any, text: str) -> None:
    if not is_so:
        raise WrongError(text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
