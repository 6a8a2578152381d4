"""The table of fused attention layouts, held against what each attention really does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hf_zoo import MODELS as HF_MODELS
from timm_zoo import MODELS, SMALL, images, named, roughened
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as torchvision_swin

from vitune.backbones import find_sites
from vitune.backbones import fused as layouts
from vitune.backbones.fused import EQUAL_SLICES, INTERLEAVED, letters, sampled_channels
from vitune.backbones.site import Site


def _torchvision_swin(version: int) -> nn.Module:
    options: dict[str, Any] = {}
    if version == 2:
        options["block"] = torchvision_swin.SwinTransformerBlockV2
        options["downsample_layer"] = torchvision_swin.PatchMergingV2
    return torchvision_swin.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4], **options)


def _sam_vision(implementation: str) -> nn.Module:
    options = {"image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1]}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SamVisionConfig(
        **sizes, **options, output_channels=16, initializer_range=0.1
    )
    config._attn_implementation = implementation
    return transformers.SamVisionModel(config)


def _vitdet() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    options = {"image_size": 32, "pretrain_image_size": 32, "patch_size": 8, "window_size": 2}
    return transformers.VitDetModel(
        transformers.VitDetConfig(**sizes, **options, window_block_indices=[0])
    )


FROM_TIMM_ZOO = (
    *("test_vit", "beit_base_patch16_224", "cait_xxs24_224", "convit_tiny", "davit_tiny"),
    *("edgenext_xx_small", "eva_giant_patch14_224", "gcvit_xxtiny", "hiera_tiny_224"),
    *("hieradet_small", "test_maxvit", "maxvit_tiny_tf_224", "nest_tiny", "pvt_v2_b0"),
    "maxvit_rmlp_pico_rw_256",
    *("swin_tiny", "swinv2_tiny", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "twins_svt_small"),
    *("test_vit_relpos", "samvit_base_patch16_224", "volo_d1_224", "xcit_nano_12_p16_224"),
)
CASES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{name: MODELS[name] for name in FROM_TIMM_ZOO},
    "rope": (32, named("vit_pe_core_tiny_patch16_384", **SMALL, img_size=32)),
    "differential": (32, named("vit_dwee_patch16_reg1_gap_256", **SMALL, img_size=32)),
    "davit v2": (
        64,
        named(
            "davit_base_fl",
            depths=(1, 1, 1, 1),
            embed_dims=(24, 48, 72, 96),
            num_heads=(2, 4, 6, 8),
            window_size=4,
        ),
    ),
    "torchvision swin": (32, lambda: _torchvision_swin(1)),
    "torchvision swinv2": (32, lambda: _torchvision_swin(2)),
    "hf hiera": HF_MODELS["Hiera"],
    "hf sam": (64, lambda: _sam_vision("sdpa")),
    "hf sam eager": (64, lambda: _sam_vision("eager")),
    "hf vitdet": (32, _vitdet),
}
SHOWN_AS = {
    # Attention over channels: what is weighted shows as v, and q and k both reach all tokens.
    "timm.models.davit.ChannelAttention": "vkk",
    "timm.models.davit.ChannelAttentionV2": "kkv",
    "timm.models.edgenext.CrossCovarianceAttn": "kkv",
    "timm.models.xcit.XCA": "kkv",
    # A norm behind the weighting, so that v does not show in proportion.
    "timm.layers.diff_attention.DiffAttention": "qkk",
    # One query, so that k reaches one token alone.
    "timm.models.volo.ClassAttention": "qv",
}
"""Attentions whose q, k and v show otherwise, and as what."""

HEAD_BY_HEAD = {"maxvit_rmlp_pico_rw_256", "tiny_vit_5m_224"}
"""Cases in which some attention puts q, k and v of one of several heads next to each other."""


def _kind(attention: nn.Module) -> str:
    return layouts._forward_owner(attention)


def _owner(model: nn.Module, site: Site) -> nn.Module:
    return model.get_submodule(site.name.rpartition(".")[0])


def _attentions(model: nn.Module, x: Tensor) -> dict[str, tuple[Site, tuple, dict[str, Any]]]:
    """The first site of every kind of attention and width, with what it was called with."""
    found: dict[str, tuple[Site, tuple, dict[str, Any]]] = {}
    handles = []
    for site in find_sites(model):
        if site.role == "qkv":

            def seen(module: nn.Module, args: tuple, kwargs: dict, site: Site = site) -> None:
                found.setdefault(f"{_kind(module)} {site.parts}", (site, args, kwargs))

            owner = _owner(model, site)
            handles.append(owner.register_forward_pre_hook(seen, with_kwargs=True))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def _through_its_linear(linear: nn.Linear) -> Callable[..., Tensor]:
    """F.linear that calls `linear` where its weight is read instead, so that hooks see it."""
    plain = F.linear

    def called(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is not linear.weight or called.busy:
            return plain(x, weight, bias)
        called.busy = True
        y = linear(x)
        called.busy = False
        own = 0 if linear.bias is None else linear.bias
        return y - own + (0 if bias is None else bias)

    called.busy = False
    return called


def _used_for(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[Site, str]]:
    """By kind of attention: its site, and what sampled channels of its linear are used for."""
    uses = {}
    for kind, (site, args, kwargs) in _attentions(model, x).items():
        linear = model.get_submodule(site.name)
        call = partial(_owner(model, site), *args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", _through_its_linear(linear))
            channels = sampled_channels(linear.out_features, len(site.parts))
            uses[kind] = site, letters(partial(_tokens_from, call), linear, channels)
    return uses


def _tokens_from(call: Callable[[], Any]) -> Tensor:
    return layouts._tokens_of(call())


@pytest.mark.parametrize("name", CASES)
def test_every_known_layout_is_what_the_attention_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, make = CASES[name]
    torch.manual_seed(1)
    model, x = roughened(make()), images(size)
    uses = _used_for(model, x, monkeypatch)
    assert uses
    for kind, (site, used) in uses.items():
        assert "?" not in used, (kind, used)
        own = kind.split(" (")[0]
        expected = SHOWN_AS.get(own, "".join(site.parts))
        is_cut_so = used == "".join(letter * layouts.SAMPLES for letter in expected)
        assert is_cut_so or site.num_parts == 1, (kind, used)
        assert is_cut_so == (name not in HEAD_BY_HEAD), (kind, used)


def test_a_multi_scale_attention_pools_three_equal_slices() -> None:
    """q, k and v of an MViT are pooled and normed; the pools tell which outputs they get."""
    size, make = MODELS["mvitv2_tiny"]
    torch.manual_seed(1)
    model, x = roughened(make()), images(size)
    (site, args, kwargs) = next(iter(_attentions(model, x).values()))
    attention, linear = _owner(model, site), model.get_submodule(site.name)
    assert isinstance(linear, nn.Linear) and site.parts == ("q", "k", "v") and site.num_parts == 3
    for part in range(3):
        size = linear.out_features // 3
        pooled = [
            _pooled(attention, linear, slice(part * size, (part + 1) * size), shift, args, kwargs)
            for shift in (0.0, 1.0)
        ]
        moved = [not torch.equal(one, other) for one, other in zip(*pooled, strict=True)]
        assert moved == [index == part for index in range(3)]


def _pooled(
    attention: Any, linear: nn.Linear, channels: slice, shift: float, args: tuple, kwargs: dict
) -> list[Tensor]:
    """What the pools of q, k and v return with `shift` on some outputs of the fused linear."""
    outputs: list[Tensor] = []

    def shifted(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        y = y.clone()
        y[..., channels] += shift
        return y

    handles = [linear.register_forward_hook(shifted)]
    for pool in (attention.pool_q, attention.pool_k, attention.pool_v):
        handles.append(pool.register_forward_hook(lambda _, __, y: outputs.append(y)))
    with torch.no_grad():
        attention(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return outputs


def test_the_cases_reach_every_class_of_the_table() -> None:
    kinds = set()
    for _, make in (*CASES.values(), MODELS["mvitv2_tiny"]):
        model = make()
        kinds |= {_kind(_owner(model, s)) for s in find_sites(model) if s.role == "qkv"}
    assert kinds == EQUAL_SLICES | INTERLEAVED
    assert len(EQUAL_SLICES) >= 30
