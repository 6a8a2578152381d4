"""What the contract tests share: methods x backbones, and models that have trained a bit."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import vitune_pytest
from vitune.backbones import find_sites
from vitune.errors import BackboneError, VituneError
from vitune.methods import METHODS, OWN, MethodConfig, MethodLayer, get_method, load_plugin
from vitune.testing.tiny_backbones import build, images, run

for _file in vitune_pytest.plugins:
    load_plugin(_file)

TESTED = {name: get_method(name) for name in vitune_pytest.chosen} or OWN
"""The methods under test: those of `--method`, else all of vitune's."""

BACKBONES = ("vit", "transformers_vit", "plain_stack", "swin")


@cache
def _prototype(backbone: str) -> nn.Module:
    return build(backbone)


def fresh(backbone: str) -> nn.Module:
    """The network `backbone`, the same for each call."""
    return copy.deepcopy(_prototype(backbone))


def takes(method: str, backbone: str) -> bool:
    """Whether the method says that it acts on such a network."""
    try:
        METHODS[method].config_class().choose(find_sites(_prototype(backbone)))
    except BackboneError:
        return False
    return True


CASES = [
    (method, backbone) for method in TESTED for backbone in BACKBONES if takes(method, backbone)
]
ON_VIT = [method for method in TESTED if takes(method, "vit")]
each_case = pytest.mark.parametrize(
    ("method", "backbone"), CASES, ids=[f"{method}-{backbone}" for method, backbone in CASES]
)
each_method = pytest.mark.parametrize("method", ON_VIT)


def config_of(method: str, **options: Any) -> Any:
    """A config of `method` under which nothing is drawn in the forward pass."""
    config_class = METHODS[method].config_class
    known = config_class.__dataclass_fields__
    quiet = {name: 0.0 for name in ("dropout", "drop_path") if name in known}
    return config_class(**{**quiet, **options})


def adapt(method: str, backbone: str, *, seed: int = 3, **options: Any) -> PeftModel:
    """A network with a fresh adapter, in evaluation mode."""
    network = fresh(backbone)  # first: building one seeds the generator
    torch.manual_seed(seed)
    return get_peft_model(network, config_of(method, **options)).eval()


def move(model: nn.Module, seed: int = 4, size: float = 0.05) -> None:
    """Change every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype), alpha=size)


def trained(method: str, backbone: str, *, seed: int = 3, **options: Any) -> PeftModel:
    """A network with an adapter that changes its output."""
    model = adapt(method, backbone, seed=seed, **options)
    move(model, seed)
    return model


def two_adapters(method: str, backbone: str, **options: Any) -> tuple[PeftModel, Tensor, Tensor]:
    """A model with "default" (active) and "other", and the output of each."""
    x = images(backbone)
    model = trained(method, backbone, **options)
    first = run(model, x)
    model.add_adapter("other", config_of(method, **options))
    model.set_adapter("other")
    move(model, seed=11)
    second = run(model, x)
    model.set_adapter("default")
    return model, first, second


def layers_of(model: nn.Module) -> list[MethodLayer]:
    return [module for module in model.modules() if isinstance(module, MethodLayer)]


def refused(config_class: type[MethodConfig], verb: str) -> Any:
    """A context that expects the error that the method declares for `verb`."""
    assert config_class.refusals()[verb]
    return pytest.raises((VituneError, ValueError))


def refuses(method: str, verb: str) -> bool:
    """Whether the method declares that it does not support a function or option of PEFT."""
    config_class: Any = METHODS[method].config_class
    return verb in config_class.refusals()


def same(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models hold the same tensors under the same names."""
    one, two = left.state_dict(), right.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
