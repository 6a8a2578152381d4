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
    """`lean_step` with only the class token after the last attention; forward and backward.

    Args:
        tail: what `class_tail` found.
        checkpointing: whether blocks are checkpointed, which leaves `lean_step` nothing to save.
    """
    with nullcontext() if checkpointing else lean_step(), first_token_only(*tail):
        yield


def class_tail(model: nn.Module) -> tuple[nn.Module, ...]:
    """The linears that need only the class token: output projection and fc1 of the last block.

    After the last attention, tokens do not interact. Empty if they do or if more than one token is
    read: pooling other than the class token, two heads (a distilled model reads two tokens),
    windows, or an adapter that mixes tokens in a linear layer.
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
