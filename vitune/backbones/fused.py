"""What a fused linear of an attention computes, and whether in equal slices: a table and a trial.

Most attentions cut the outputs of `qkv` into three slices q, k, v. Some put q, k and v of one head
next to each other, some compute only k and v. The table names those that are known; an attention
that is not in it is tried on random tokens, and treated as a whole if that is inconclusive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vitune.backbones.structure import WRAPPED

PARTS = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "qk": ("q", "k")}
"""What a fused linear computes, by its name."""

EQUAL_SLICES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "timm.layers.attention": ("Attention", "AttentionRope"),
        "timm.layers.diff_attention": ("DiffAttention",),
        "timm.models.beit": ("Attention",),
        "timm.models.cait": ("TalkingHeadAttn",),
        "timm.models.convit": ("GPSA", "MHSA"),
        "timm.models.davit": ("ChannelAttention", "ChannelAttentionV2", "WindowAttention"),
        "timm.models.edgenext": ("CrossCovarianceAttn",),
        "timm.models.eva": ("EvaAttention",),
        "timm.models.gcvit": ("WindowAttentionGlobal",),
        "timm.models.hiera": ("MaskUnitAttention",),
        "timm.models.hieradet_sam2": ("MultiScaleAttention",),
        "timm.models.maxxvit": ("AttentionCl",),
        "timm.models.mvitv2": ("MultiScaleAttention",),
        "timm.models.nest": ("Attention",),
        "timm.models.pvt_v2": ("Attention",),
        "timm.models.swin_transformer": ("WindowAttention",),
        "timm.models.swin_transformer_v2": ("WindowAttention",),
        "timm.models.swin_transformer_v2_cr": ("WindowMultiHeadAttention",),
        "timm.models.twins": ("GlobalSubSampleAttn", "LocallyGroupedAttn"),
        "timm.models.vision_transformer_relpos": ("RelPosAttention",),
        "timm.models.vision_transformer_sam": ("Attention",),
        "timm.models.volo": ("Attention", "ClassAttention"),
        "timm.models.xcit": ("XCA",),
        "torchvision.models.swin_transformer": (
            "ShiftedWindowAttention",
            "ShiftedWindowAttentionV2",
        ),
        "transformers.models.hiera.modeling_hiera": ("HieraMaskUnitAttention",),
        "transformers.models.sam.modeling_sam": ("SamVisionAttention", "SamVisionSdpaAttention"),
        "transformers.models.vitdet.modeling_vitdet": ("VitDetAttention",),
    }.items()
    for name in names
)
"""Classes whose forward pass splits a fused linear into equal slices in the order of its name."""

INTERLEAVED = frozenset({"timm.models.tiny_vit.Attention"})
"""Classes that group the outputs by head."""

INTERLEAVED_IF = {"timm.models.maxxvit.AttentionCl": "head_first"}
"""Classes that do so if an attribute is true."""

KEY_VALUE_IF = {"timm.models.gcvit.WindowAttentionGlobal": "use_global"}
"""Classes whose `qkv` computes only k and v if an attribute is true."""

NUM_TOKENS = 6
SAMPLES = 3
_tried: dict[tuple[Callable[..., object], tuple[str, ...]], bool] = {}


def fused_parts(attention: nn.Module, linear: nn.Linear, name: str) -> tuple[tuple[str, ...], int]:
    """What `linear`, called `name` in `attention`, computes, and in how many equal slices.

    One slice means that its outputs cannot be distinguished by position.
    """
    kind, parts = _forward_owner(attention), PARTS[name]
    if kind in KEY_VALUE_IF and getattr(attention, KEY_VALUE_IF[kind]):
        parts = PARTS["kv"]
    if kind in INTERLEAVED_IF:
        is_equal = not getattr(attention, INTERLEAVED_IF[kind])
    else:
        is_equal = kind in EQUAL_SLICES or (
            kind not in INTERLEAVED and _is_cut_so(attention, linear, parts)
        )
    divides = linear.out_features % len(parts) == 0
    return parts, len(parts) if is_equal and divides else 1


def letters(run: Callable[[], Tensor], linear: nn.Module, channels: Sequence[int]) -> str:
    """What an attention uses each of `channels`, outputs of its fused linear, for.

    One token's value is changed. An output that changes in proportion means v; else one that
    changes only for that token means q, and one that also changes for others means k. "?" means
    that nothing changed. If attention is over channels (XCiT), q and k both give k.

    Args:
        run: sends the same tokens through the attention and returns its tokens (..., d).
        linear: called once in `run`.
    """
    change: list[tuple[int, float]] = []

    def changed(_: nn.Module, __: object, output: Tensor) -> Tensor:
        flat = output.clone().flatten(0, -2)  # (tokens, o)
        for channel, size in change:
            flat[0, channel] += size
        return flat.view_as(output)

    found = []
    with torch.no_grad():
        handle = linear.register_forward_hook(changed)
        try:
            base = run()
            for channel in channels:
                responses = []
                for size in (1.0, 2.0):
                    change[:] = [(channel, size)]
                    responses.append((run() - base).flatten(0, -2))
                found.append(_letter(*responses))
        finally:
            handle.remove()
    return "".join(found)


def sampled_channels(num_channels: int, num_parts: int) -> list[int]:
    """SAMPLES channels of each of equal parts: the first, the last and some between."""
    size = num_channels // num_parts
    within = [sample * (size - 1) // (SAMPLES - 1) for sample in range(SAMPLES)]
    return [part * size + channel for part in range(num_parts) for channel in within]


def _letter(once: Tensor, twice: Tensor) -> str:
    """The use of a channel from the outputs' (tokens, d) responses to 1 and 2."""
    size = once.abs().max()
    if size < 1e-9:
        return "?"
    if (twice - 2 * once).abs().max() < 1e-4 * size:
        return "v"
    touched = once.abs().amax(dim=-1) > 1e-6 * size  # (tokens,)
    return "q" if int(touched.sum()) == 1 else "k"


def _is_cut_so(attention: nn.Module, linear: nn.Linear, parts: tuple[str, ...]) -> bool:
    """Whether an unknown attention uses `parts` as equal slices, tried once per class."""
    key = (type(attention).forward, parts)
    if key in _tried:
        return _tried[key]
    found = linear.out_features % len(parts) == 0 and _try(attention, linear, parts)
    if not any(wrapped in module._modules for module in attention.modules() for wrapped in WRAPPED):
        _tried[key] = found
    return found


def _try(attention: nn.Module, linear: nn.Linear, parts: tuple[str, ...]) -> bool:
    """Whether a copy of the attention with random weights uses sampled channels as `parts` say."""
    name = next(name for name, module in attention.named_modules() if module is linear)
    generator, shape = torch.Generator().manual_seed(0), (1, NUM_TOKENS, linear.in_features)
    channels = sampled_channels(linear.out_features, len(parts))
    tokens = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    try:
        played = _played(attention, generator)
        seen = letters(lambda: _tokens_of(played(tokens)), played.get_submodule(name), channels)
    except Exception:  # the attention may need more than tokens
        return False
    return seen == "".join(part * SAMPLES for part in parts)


def _played(attention: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy on the CPU in float64 with random weights, also of an attention on "meta"."""
    played = copy.deepcopy(attention)
    is_meta = any(tensor.is_meta for tensor in (*played.parameters(), *played.buffers()))
    played = (played.to_empty(device="cpu") if is_meta else played.cpu()).double().eval()
    for tensor in (*played.parameters(), *played.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(generator=generator).mul_(tensor.shape[-1] ** -0.5)
        elif is_meta:
            tensor.zero_()
    return played


def _tokens_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _forward_owner(attention: nn.Module) -> str:
    """The full name of the class whose `forward` is in use."""
    owner = next(kind for kind in type(attention).__mro__ if "forward" in vars(kind))
    return f"{owner.__module__}.{owner.__qualname__}"
