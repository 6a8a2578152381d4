"""Where a training step may skip work: what follows attention in the last block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch import nn

from vitune.backbones import find_sites, head_names, token_layout
from vitune.errors import BackboneError
from vitune.methods import keeps_tokens_apart
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
    """The linears that need the class token alone: output projection and fc1 of the last block.

    From the last attention on, a token meets no other. Empty where that is not so or more is read
    than one token: another pooling than the class token's, two heads (a distilled model reads two
    tokens), windows, an adapter that lets tokens meet in a linear.
    """
    if not keeps_tokens_apart(model):
        return ()
    try:
        sites, layout = find_sites(model), token_layout(model)
    except BackboneError:
        return ()
    depth = max((site.block for site in sites if site.block is not None), default=None)
    last = [site for site in sites if site.block is not None and site.block == depth]
    if layout.pooling != "token" or len(head_names(model)) > 1 or any(s.windowed for s in last):
        return ()
    wanted = [s for s in last if s.role in ("attn_out", "fc1") and not s.direct_weight]
    return tuple(model.get_submodule(site.name) for site in wanted)
