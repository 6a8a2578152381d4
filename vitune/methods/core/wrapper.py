"""Layers that wrap a module instead of changing its weight; they do not merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from vitune.backbones.sites import Site
from vitune.errors import BackboneError
from vitune.methods.core.block_hooks import NOTHING, Call, with_hooks, with_tokens, without_hooks
from vitune.methods.core.layer import MethodLayer, Tensors
from vitune.methods.core.method_config import MethodConfig
from vitune.methods.core.roles import choose_sites


class WrapperLayer(MethodLayer):
    """A module with its call wrapped; several active adapters nest in their order.

    Hooks of the module, such as those by which transformers records hidden states, see what it
    takes and returns together with its adapters.
    """

    mergeable: ClassVar[bool] = False

    @classmethod
    def require_base(cls, site: Site, module: nn.Module, by: str) -> None:
        """Any module will do: its weights are not read."""

    def around(self, inner: Call, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module returns with `adapter`, `inner` being the module without it."""
        raise NotImplementedError

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        adapters = [] if self.disable_adapters else self.adapters_here()
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        recomputed, block, call = recomputing(self.base_layer)
        for adapter in adapters:
            call = partial(self.around, call, adapter)

        def adapted(*given: Any, **named: Any) -> Any:
            return recomputed(partial(call, **named), *given)

        return with_hooks(block, adapted, (x, *args), kwargs, hidden=self.hidden(adapters))

    def hidden(self, adapters: Sequence[str]) -> tuple[slice, slice]:
        """Tokens of the adapters among those that enter and leave, not shown to hooks."""
        return NOTHING, NOTHING

    def base_tensors(self) -> Tensors:
        base = self.get_base_layer()
        return {name: getattr(base, name) for name in ("weight", "bias") if hasattr(base, name)}

    def effective_tensors(self) -> Tensors:
        return self.base_tensors()

    def inner_site(self, *roles: str) -> Site:
        """The first site inside this block, in forward order, with one of `roles`."""
        found = next((site for site in self.inner_sites if site.role in roles), None)
        if found is None:
            raise AttributeError(f"{type(self).__name__!r} has none of {roles!r} inside")
        return found

    def inner_module(self, *roles: str) -> nn.Module:
        """The module at `inner_site`."""
        return self.get_base_layer().get_submodule(self.inner_site(*roles).name)

    @property
    def width(self) -> int:
        """Features of the module's output tokens: a linear's, or those of a block's last linear."""
        base = self.get_base_layer()
        if not isinstance(base, nn.Linear):
            base = self.inner_module("fc2")
        return int(base.out_features)


def recomputing(block: Any) -> tuple[Call, nn.Module, Call]:
    """How a block is checkpointed: (recomputed(call, *x), the block without that, its call).

    An adapter reads tensors inside the block, so the block is recomputed together with it: a hook
    around a checkpoint would see tensors without a graph (reentrant) or be gone by then.
    """
    if hasattr(block, "_checkpoint_wrapped_module"):  # PyTorch's apply_activation_checkpointing
        inner = block._checkpoint_wrapped_module
        return block.checkpoint_fn, inner, without_hooks(inner)
    call = without_hooks(block)
    if block.training and getattr(block, "gradient_checkpointing", False):  # transformers
        return block._gradient_checkpointing_func, block, partial(_uncheckpointed, block, call)
    return _as_it_is, block, call


def _uncheckpointed(block: Any, call: Call, *args: Any, **kwargs: Any) -> Any:
    """The output of a transformers block that must not checkpoint itself in this call."""
    block.gradient_checkpointing = False
    try:
        return call(*args, **kwargs)
    finally:
        block.gradient_checkpointing = True


def _as_it_is(call: Call, *given: Any) -> Any:
    return call(*given)


class BlockConfig(MethodConfig):
    """Base of the methods that act on whole blocks, where a choice of roles has no meaning."""

    narrowed_by: ClassVar[frozenset[str]] = frozenset(
        {"blocks", "target_modules", "exclude_modules"}
    )
    inner_roles: ClassVar[tuple[str, ...]] = ("attn_out", "fc2")
    acts_in_windows: ClassVar[bool] = True

    @classmethod
    def reason_against(cls, option: str) -> str:
        """Why the method does not support an option."""
        return f"{cls.title} acts on whole blocks"

    def choose(self, sites: Sequence[Site]) -> Sequence[Site]:
        """The transformer blocks that have `inner_roles`; windowed only if `acts_in_windows`."""
        needs, windowed = self.inner_roles, self.acts_in_windows
        return choose_blocks(sites, self.blocks, by=self.title, needs=needs, windowed=windowed)


@contextmanager
def tapped(
    module: nn.Module,
    *,
    on_input: Callable[[Tensor], None] | None = None,
    on_output: Callable[[Tensor], Tensor | None] | None = None,
) -> Iterator[None]:
    """Within: `on_input` sees the module's input; `on_output` sees, or replaces, its output.

    The hooks exist for one call only, so a copied, saved or recomputed block has none.
    """
    handles = []
    if on_input is not None:
        handles.append(module.register_forward_pre_hook(lambda _, given: on_input(given[0])))
    if on_output is not None:

        def replaced(_: nn.Module, __: Any, output: Any) -> Any:
            tokens = on_output(output[0] if isinstance(output, tuple) else output)
            return None if tokens is None else with_tokens(output, lambda _: tokens)

        handles.append(module.register_forward_hook(replaced))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_blocks(
    sites: Sequence[Site],
    blocks: Sequence[int] | None,
    *,
    by: str,
    needs: Sequence[str] = ("attn_out", "fc2"),
    windowed: bool = True,
) -> tuple[Site, ...]:
    """The transformer blocks for a method that acts on whole blocks.

    Args:
        needs: roles that must be inside each block.
        windowed: whether blocks that attend in windows are accepted.

    Raises:
        BackboneError: no blocks, a block without what the method needs, or windows.
    """
    chosen = choose_sites(sites, ("block",), blocks, named=True, by=by)
    for site in chosen:
        inside = {inner.role for inner in sites if inner.name.startswith(f"{site.name}.")}
        missing = sorted(set(needs) - inside)
        if missing:
            raise BackboneError(
                f"{by} at {site.name!r}: got a block without {missing!r}, expected a transformer "
                "block with them. Choose a method that acts on single layers ('vitune methods')."
            )
        if site.windowed and not windowed:
            raise BackboneError(
                f"{by} at {site.name!r}: got a block that attends in windows, expected one whose "
                "attention sees all tokens. Choose another method ('vitune methods')."
            )
    return chosen
