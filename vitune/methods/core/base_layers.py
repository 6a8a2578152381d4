"""Which layers of a backbone a method may treat as weight and bias, and how each is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm.layers
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from vitune.backbones.sites import Site
from vitune.backbones.structure import WRAPPED
from vitune.errors import BackboneError

PLAIN_FORWARDS = (nn.Linear.forward, timm.layers.Linear.forward, nn.Conv2d.forward)
"""Forward passes that only apply weight and bias."""

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Number formats of a weight that can be read, changed and written back."""

PROBE_TOLERANCE = 1e-4


def convolve(base: nn.Conv2d, tensors: Mapping[str, Tensor | None], x: Tensor) -> Tensor:
    """The convolution's own map with `tensors` in place of its weight and bias."""
    if type(base).forward is not nn.Conv2d.forward:
        return call_with(base, tensors, x)
    weight, bias = (None if t is None else t.to(x.dtype) for t in tensors.values())
    return base._conv_forward(x, weight, bias)  # type: ignore[arg-type]


def call_with(base: nn.Module, tensors: Mapping[str, Tensor | None], x: Tensor) -> Tensor:
    """The base layer's own forward pass with `tensors` in place of its weight and bias.

    A convolution with its own padding or weight standardisation keeps it.
    """
    reference = base.weight if isinstance(base.weight, Tensor) else x
    values = {key: None if t is None else t.to(reference.dtype) for key, t in tensors.items()}
    output: Tensor = torch.func.functional_call(base, values, x)  # type: ignore[arg-type]
    return output


def require_own_weight(site: Site, module: nn.Module, by: str) -> None:
    """Refuse a layer whose weight or bias `by` could not read, change and write back.

    Raises:
        BackboneError: one of them is quantised, sparse or computed from other parameters.
    """
    if getattr(module, "weight", None) is not None:
        require_own_parameter(module, "weight", f"{by} at {site.name!r} ({site.role})")
    if isinstance(getattr(module, "bias", None), Tensor):  # others keep a flag under this name
        require_own_parameter(module, "bias", f"{by} at {site.name!r} ({site.role})")


def require_own_parameter(owner: nn.Module, name: str, at: str) -> None:
    """Refuse a parameter that cannot be read, changed and written back.

    Args:
        at: the method and the location, for the start of the error.

    Raises:
        BackboneError: it is quantised, sparse or computed from other parameters.
    """
    oddity = _oddity(getattr(owner, name))
    if oddity:
        raise BackboneError(
            f"{at}: got a {type(owner).__name__} whose {name} is {oddity}, expected a plain one in "
            "float32, bfloat16 or float16. Load the backbone without quantisation or weight norm, "
            "or choose a method that leaves weights unchanged, one that does not merge ('vitune "
            "methods')."
        )


def require_plain_linear(site: Site, module: nn.Linear, by: str) -> None:
    """Refuse a subclass of `nn.Linear` that computes something other than x Wᵀ + b, found by
    trying.

    Raises:
        BackboneError: it is one, or its weight is not its own.
    """
    require_own_weight(site, module, by)
    if type(module).forward not in PLAIN_FORWARDS and not _is_linear_map(module):
        raise BackboneError(
            f"{by} at {site.name!r} ({site.role}): got {type(module).__name__!r}, whose forward "
            "pass is not x Wᵀ + b, expected a linear layer. Leave the role out with roles=..., or "
            "choose another method."
        )


def scales_with_weight(module: nn.Module) -> bool:
    """Whether γ and β after the layer equal a weight γ W and a bias γ b + β in it.

    They do not if the layer standardises its weight, as in a BiT ResNet or an NFNet. Found by
    trying.
    """
    if type(module).forward in PLAIN_FORWARDS:
        return True
    assert isinstance(module, nn.Conv2d)
    size = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    image, channels = (1, module.in_channels, *size), (module.out_channels,)
    values, (x, scale) = _random_values(module, image, channels)
    folded = {
        "weight": values["weight"] * scale.view(-1, 1, 1, 1),
        "bias": values["bias"] * scale + 1,
    }
    plain = torch.func.functional_call(module, values, x)
    found = torch.func.functional_call(module, {**values, **folded}, x)
    return _is_close(found, plain * scale.view(-1, 1, 1) + 1)


def require_free_names(model: nn.Module) -> None:
    """Refuse a network that uses a name under which PEFT keeps the layers it replaces.

    Raises:
        BackboneError: it does; unloading would mistake the module for an adapter layer.
    """
    for name, module in model.named_modules():
        taken = [key for key in WRAPPED if key in module._modules and not _is_wrapper(module)]
        if taken:
            raise BackboneError(
                f"model: got {type(module).__name__} ({name or 'the network itself'}) with a child "
                f"called {taken[0]!r}, expected another name: PEFT keeps replaced layers under it "
                "and could not unload or merge. Choose another backbone."
            )


def _oddity(value: Any) -> str:
    """What is odd about a parameter; '' for a plain one."""
    if not isinstance(value, nn.Parameter):
        return "computed from other parameters"
    is_plain = type(value) is nn.Parameter or isinstance(value, DTensor | FakeTensor)
    if value.dtype not in WEIGHT_DTYPES or not is_plain:
        return f"quantised ({type(value).__name__}, {value.dtype})"
    return "" if value.layout == torch.strided else f"sparse ({value.layout})"


def _is_linear_map(module: nn.Linear) -> bool:
    values, (x,) = _random_values(module, (3, module.in_features))
    try:
        found = torch.func.functional_call(module, values, x)
    except Exception:  # such a layer may fail in any way on plain values
        return False
    expected = F.linear(x, values["weight"], values["bias"])
    return isinstance(found, Tensor) and _is_close(found, expected)


def _random_values(
    module: nn.Module, *shapes: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Values for everything the module holds, including its bias, and tensors of `shapes`.

    In float64 on the CPU, whatever the module's device, and without touching PyTorch's own
    generator.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {name: drawn(t.shape) if t.is_floating_point() else t for name, t in held.items()}
    return {"bias": drawn(held["weight"].shape[:1]), **values}, [drawn(shape) for shape in shapes]


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max())


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
