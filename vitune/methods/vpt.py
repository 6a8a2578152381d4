"""Visual prompt tuning: learned tokens beside the patches, at the first block or at every one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import Site, find_sites, num_prefix_tokens
from vitune.methods.authoring import (
    NOTHING,
    BackboneError,
    BlockConfig,
    Call,
    MethodLayer,
    WrapperLayer,
    block_width,
    check_rank,
    check_rate,
    require_more_tokens,
    uniform,
    with_tokens,
    without_tokens,
)

POSITION_MODULES = ("rope", "rel_pos", "relative_position", "pos_bias")
"""Parts of module names that indicate positions inside attention, which prompts do not have."""


@dataclass
class VPTDeepConfig(BlockConfig):
    """[prefix; P_i; patches] enters block i, and P_i's outputs are dropped after it.

    Shapes: P_i (p, d), one for each block.
    Args:
        num_prompts: p; chosen on validation among 1, 5, 10, 50, 100, 200.
        dropout: rate on the prompts while training.

    Raises:
        VituneError: a value out of range, or roles, which the method does not use.
        BackboneError: at injection, where attention is in windows or has positions of its own, or
            a block does not take more tokens than the network gives it.
    Source: VPT (ECCV 2022) and its code: U(±√(6/(3·patch² + d))), prompts between the class token
        and the patches, without position. The backbone's dropout and drop path stay on while
        training, unlike there.
    """

    num_prompts: int = field(default=10)
    dropout: float = field(default=0.0)

    method = "vpt_deep"
    title = "VPT-deep"
    source = "Visual Prompt Tuning, ECCV 2022"
    formula = "L·p·d"
    counts_on_vit_b16 = (({"num_prompts": 50}, 460_800),)
    mergeable = False
    identity_at_init = False
    acts_in_windows = False
    exposes_delta = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.num_prompts, "num_prompts")
        check_rate("dropout", self.dropout)

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        _refuse_positions(model, self.title)
        names = [site.name for site in sites]
        require_more_tokens(model, sites, names, names, self.title, number=self.num_prompts)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return PromptedBlock

    def new_shared(self, model: nn.Module, sites: Sequence[Site]) -> nn.Module:
        return PromptPlan(model, num_prefix_tokens(model), sites)

    def decayed_by_authors(self, place: str, name: str, parameter: Tensor) -> bool:
        """Everything except the head's bias."""
        return (place, name) != ("head", "bias")

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return sum(self.num_prompts * block_width(model, site) for site in sites)


@dataclass
class VPTShallowConfig(VPTDeepConfig):
    """[prefix; P; patches] enters the first block; P's outputs are dropped after the last.

    What timm's `forward_intermediates` (`get_intermediate_layers`, `features_only`) takes from a
    block before the last holds P's outputs as well.

    Shapes: P (p, d).
    Source: VPT (ECCV 2022), "VPT-shallow". With `blocks`, from the first to the last of those.
    """

    method = "vpt_shallow"
    title = "VPT-shallow"
    formula = "p·d"
    counts_on_vit_b16 = (({"num_prompts": 50}, 38_400),)
    every_site_has_tensors = False

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        chosen = super().choose(sites)
        blocks = [site for site in sites if site.role == "block"]
        return blocks[blocks.index(chosen[0]) : blocks.index(chosen[-1]) + 1]

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        _refuse_positions(model, self.title)
        first, last = [sites[0].name], [sites[-1].name]
        require_more_tokens(model, sites, first, last, self.title, number=self.num_prompts)

    def layer_class(self, site: Site, module: nn.Module) -> type[MethodLayer]:
        return PromptCarryingBlock

    def num_parameters(self, model: nn.Module, sites: Sequence[Site]) -> int:
        return self.num_prompts * block_width(model, sites[0])


class PromptPlan(nn.Module):
    """Where prompts enter and leave, and how they start; it has no parameters."""

    def __init__(self, model: nn.Module, num_prefix: int, sites: Sequence[Site]) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.first, self.last = sites[0].name, sites[-1].name
        stem = next((site for site in find_sites(model) if site.role == "patch_embed"), None)
        weight = None if stem is None else model.get_submodule(stem.name).weight
        self.patch_numel = 3 * 16**2 if weight is None else weight[0].numel()  # type: ignore[index]


class PromptedBlock(WrapperLayer):
    """A block that gets p more tokens and drops them again; prompts (p, d)."""

    adapter_layer_names = ("prompts",)
    exposes_delta = False

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        assert isinstance(shared, PromptPlan)
        bound = math.sqrt(6 / (shared.patch_numel + self.width))
        return {"prompts": uniform((config.num_prompts, self.width), bound)}

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._fitted(args, kwargs, adapter)
        output = inner(self._with_prompts(x, adapter), *args, **kwargs)
        return with_tokens(output, lambda y: self._without_prompts(y, adapter))

    def _with_prompts(self, x: Tensor, adapter: str) -> Tensor:
        rate, start = self.configs[adapter].dropout, self._start(adapter)
        prompts = F.dropout(self.prompts[adapter].to(x.dtype), rate, self.training)
        prompts = prompts.expand(x.shape[0], -1, -1)  # (b, p, d)
        return torch.cat([x[:, :start], prompts, x[:, start:]], dim=1)

    def _fitted(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], adapter: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What comes with the tokens, with room for the prompts in every mask."""
        config, start = self.configs[adapter], self._start(adapter)

        def fit(value: Any) -> Any:
            return _fit(value, start, config.num_prompts, config.title)

        return tuple(map(fit, args)), {name: fit(value) for name, value in kwargs.items()}

    def _without_prompts(self, y: Tensor, adapter: str) -> Tensor:
        return without_tokens(y, self._prompts_of([adapter]))

    def _prompts_of(self, adapters: Sequence[str]) -> slice:
        """Where the prompts of `adapters` stand."""
        if not adapters:
            return NOTHING
        start = self._start(adapters[0])
        return slice(start, start + sum(self.configs[name].num_prompts for name in adapters))

    def _start(self, adapter: str) -> int:
        return self._plan(adapter).num_prefix

    def _plan(self, adapter: str) -> PromptPlan:
        plan = self.shared[adapter]
        assert isinstance(plan, PromptPlan)
        return plan


class PromptCarryingBlock(PromptedBlock):
    """From the first block, where prompts enter, to the last, after which they are dropped.

    Hooks of a block, and so the hidden states that transformers records, see no prompts.
    """

    def new_parameters(self, config: Any, shared: nn.Module | None) -> Mapping[str, Tensor]:
        assert isinstance(shared, PromptPlan)
        is_first = self.site.name == shared.first
        return super().new_parameters(config, shared) if is_first else {}

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._fitted(args, kwargs, adapter)
        plan = self._plan(adapter)
        if self.site.name == plan.first:
            x = self._with_prompts(x, adapter)
        output = inner(x, *args, **kwargs)
        if self.site.name == plan.last:
            output = with_tokens(output, lambda y: self._without_prompts(y, adapter))
        return output

    def hidden(self, adapters: Sequence[str]) -> tuple[slice, slice]:
        here = self.site.name
        entering = [name for name in adapters if self._plan(name).first != here]
        leaving = [name for name in adapters if self._plan(name).last != here]
        return self._prompts_of(entering), self._prompts_of(leaving)


def _refuse_positions(model: nn.Module, by: str) -> None:
    """Refuse attention with rotary or relative positions, which has none for prompts."""
    for name, _ in (*model.named_modules(), *model.named_parameters()):
        if any(part in name.rpartition(".")[2] for part in POSITION_MODULES):
            raise BackboneError(
                f"{by}: got a backbone with positions inside attention ({name!r}), expected one "
                "that adds them to the tokens. Choose another method ('vitune methods')."
            )


def _fit(value: Any, start: int, number: int, by: str) -> Any:
    """An attention mask (b, 1, n or 1, n) with `number` more tokens at `start`.

    Every token attends to them, and they to what any token attends to. transformers makes a
    mask of ones while a model is exported. A single number (its Trainer sends the number of
    images) needs no fitting; nothing else, such as a rotary table, can be fitted.
    """
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.dim() != 4 or value.shape[1] != 1 or value.shape[2] not in (1, value.shape[3]):
        raise BackboneError(
            f"{by}: got a block that is called with positions or a mask of shape "
            f"{tuple(value.shape)}, expected tokens alone or a mask (b, 1, n, n). Choose another "
            "method ('vitune methods')."
        )
    is_bool = value.dtype == torch.bool  # a mask of numbers is added: 0 is attended to
    attended = value.new_full((*value.shape[:3], number), is_bool)
    value = _inserted(value, attended, start, 3)
    if value.shape[2] == 1:
        return value
    by_any = value.any(2, keepdim=True) if is_bool else value.amax(2, keepdim=True)
    return _inserted(value, by_any.expand(-1, -1, number, -1), start, 2)


def _inserted(value: Tensor, more: Tensor, start: int, axis: int) -> Tensor:
    before, after = value.tensor_split([start], dim=axis)
    return torch.cat([before, more, after], dim=axis)
