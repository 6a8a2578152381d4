"""Where a training step may skip work: what follows attention in the last block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import nn

from vitune.backbones import Site, find_sites, head_names, token_layout
from vitune.errors import BackboneError
from vitune.ops import first_token_only, lean_step


@contextmanager
def lean_training(tail: Sequence[nn.Module], *, checkpointing: bool = False) -> Iterator[None]:
    """`lean_step` with only the class token behind the last attention; forward and backward.

    Args:
        tail: what `class_tail` found.
        checkpointing: blocks are checkpointed, which leaves `lean_step` nothing to save.
    """
    with nullcontext() if checkpointing else lean_step(), first_token_only(*tail):
        yield


def class_tail(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that need the class token alone: output projection and MLP of the last block.

    Empty where that would not be exact: another pooling than the class token's, two heads (a
    distilled model reads two tokens), windows, or norms that follow their layer.
    """
    try:
        sites, layout = find_sites(model), token_layout(model)
    except BackboneError:
        return ()
    blocks = [site.block for site in sites if site.block is not None]
    if layout.pooling != "token" or not blocks or len(head_names(model)) > 1:
        return ()
    last = [site for site in sites if site.block == max(blocks)]
    if any(site.windowed for site in last) or not _is_pre_norm(last):
        return ()
    wanted = [s for s in last if s.role in ("attn_out", "norm2") and not s.direct_weight]
    return tuple(model.get_submodule(site.name) for site in wanted)


def _is_pre_norm(sites: Sequence[Site]) -> bool:
    """One attention and one MLP, each behind its norm."""
    roles = [site.role for site in sites if site.role in ("norm1", "attn_out", "norm2", "fc2")]
    return roles == ["norm1", "attn_out", "norm2", "fc2"]
