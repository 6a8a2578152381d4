"""Sites are found by structure, in forward order, for every family and inside PEFT."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from backbone_zoo import MODELS, hf_dual, hf_model, image, small, timm_model
from torch import nn

from vitune.backbones import (
    find_sites,
    head_name,
    head_names,
    sites_with_roles,
    token_layout,
)
from vitune.backbones.structure import unwrapped
from vitune.errors import BackboneError

FUSED = "norm1 qkv attn_out norm2 fc1 fc2"
SPLIT = "norm1 q k v attn_out norm2 fc1 fc2"
GATED = "norm1 q k v attn_out norm2 fc1 fc1 fc2"
POST = "qkv attn_out norm1 fc1 fc2 norm2"
POST_SPLIT = "q k v attn_out norm1 fc1 fc2 norm2"
CONV = "conv norm2 fc1 fc2"
PARTS = {
    "timm vit": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm vit registers": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm vit rms norm": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm vit attention pooling": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm deit distilled": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm deit3": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm beit": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm beit bias apart": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm dinov2": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm dinov2 swiglu": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm clip": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm siglip": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm eva": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm eva02 fused": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm eva02 split": (GATED, "patch_embed.proj", "fc_norm", "head"),
    "timm dinov3": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm relative": (FUSED, "patch_embed.proj", "fc_norm", "head"),
    "timm mae": (FUSED, "patch_embed.proj", "norm", "head"),
    "timm post norm": (POST, "patch_embed.proj", "fc_norm", "head"),
    "timm swin": (FUSED, "patch_embed.proj", "norm", "head.fc"),
    "timm swinv2": (POST, "patch_embed.proj", "norm", "head.fc"),
    "timm convnext": (CONV, "stem.0", "head.norm", "head.fc"),
    "hf vit": (SPLIT, "vit.embeddings.patch_embeddings.projection", "vit.layernorm", "classifier"),
    "hf deit": (
        SPLIT,
        "deit.embeddings.patch_embeddings.projection",
        "deit.layernorm",
        "classifier",
    ),
    "hf deit teacher": (
        SPLIT,
        "deit.embeddings.patch_embeddings.projection",
        "deit.layernorm",
        "cls_classifier",
    ),
    "hf beit": (
        SPLIT,
        "beit.embeddings.patch_embeddings.projection",
        "beit.pooler.layernorm",
        "classifier",
    ),
    "hf dinov2": (
        SPLIT,
        "dinov2.embeddings.patch_embeddings.projection",
        "dinov2.layernorm",
        "classifier",
    ),
    "hf dinov2 swiglu": (GATED, "embeddings.patch_embeddings.projection", "layernorm", None),
    "hf dinov2 registers": (
        SPLIT,
        "dinov2_with_registers.embeddings.patch_embeddings.projection",
        "dinov2_with_registers.layernorm",
        "classifier",
    ),
    "hf dinov3": (SPLIT, "embeddings.patch_embeddings", "norm", None),
    "hf mae": (SPLIT, "embeddings.patch_embeddings.projection", "layernorm", None),
    "hf clip vision": (SPLIT, "embeddings.patch_embedding", "post_layernorm", None),
    "hf clip classifier": (
        SPLIT,
        "vision_model.embeddings.patch_embedding",
        None,
        "classifier",
    ),
    "hf siglip vision": (SPLIT, "embeddings.patch_embedding", "post_layernorm", None),
    "hf swin": (
        SPLIT,
        "swin.embeddings.patch_embeddings.projection",
        "swin.layernorm",
        "classifier",
    ),
    "hf swinv2": (
        POST_SPLIT,
        "swinv2.embeddings.patch_embeddings.projection",
        "swinv2.layernorm",
        "classifier",
    ),
    "hf convnext": (
        CONV,
        "convnext.embeddings.patch_embeddings",
        "convnext.layernorm",
        "classifier",
    ),
    "torchvision vit": (FUSED, "conv_proj", "encoder.ln", "heads.head"),
    "torchvision swin": (FUSED, "features.0.0", "norm", "head"),
    "torchvision swinv2": (POST, "features.0.0", "norm", "head"),
    "torchvision convnext": (CONV, "features.0.0", "classifier.0", "classifier.2"),
}


def test_the_zoo_is_whole() -> None:
    assert len(MODELS) == 42
    assert set(PARTS) == set(MODELS) - {"timm resnet"}


@pytest.mark.parametrize("family", PARTS)
def test_parts_of_every_family(family: str) -> None:
    parts, stem, final_norm, head = PARTS[family]
    model = MODELS[family]()
    sites = find_sites(model)
    blocks = [site for site in sites if site.role == "block"]
    assert [block.block for block in blocks] == list(range(len(blocks)))
    assert len(blocks) >= 2
    for block in blocks:
        inside = [site for site in sites if site.block == block.block]
        assert inside[0] == block
        assert " ".join(site.role for site in inside[1:]) == parts
        assert all(site.name.startswith(f"{block.name}.") for site in inside[1:])
    named = {site.role: site.name for site in reversed(sites)}
    assert named["patch_embed"] == stem
    assert named.get("final_norm") == final_norm
    assert head_name(model) == named.get("head") == head
    assert len({(site.name, site.role) for site in sites}) == len(sites)


@pytest.mark.parametrize("family", MODELS)
def test_sites_stand_in_the_order_of_the_forward_pass(family: str) -> None:
    model = MODELS[family]().eval()
    sites = [site for site in find_sites(model) if site.role != "block"]
    roles = {site.name: "q, k, v" if site.role in "qkv" else site.role for site in sites}
    called: list[str] = []
    for site in sites:
        module = model.get_submodule(site.name)
        module.register_forward_hook(lambda *_, name=site.name: called.append(name))
    with torch.no_grad():
        model(image())
    passed_over = {site.name for site in sites} - set(called)
    assert all(site.direct_weight for site in sites if site.name in passed_over)
    expected = [roles[site.name] for site in sites if site.name not in passed_over]
    assert [roles[name] for name in called] == expected


@pytest.mark.parametrize("family", MODELS)
def test_a_layer_that_is_not_called_says_direct_weight(family: str) -> None:
    model = MODELS[family]().eval()
    owners = {"timm beit", "timm eva", "timm eva02 fused", "timm swinv2"}
    owners |= {name for name in MODELS if name.startswith(("torchvision vit", "torchvision swin"))}
    direct = {site.role for site in find_sites(model) if site.direct_weight}
    if family.startswith("torchvision"):
        assert direct == ({"qkv", "attn_out"} if family in owners else set())
    else:
        assert direct == ({"qkv"} if family in owners else set())


def test_biases_kept_by_the_attention_are_marked() -> None:
    for family in ("timm beit", "timm beit bias apart", "timm eva", "timm swinv2"):
        model = MODELS[family]()
        fused = [site for site in find_sites(model) if site.role == "qkv"]
        assert fused and all(site.separate_bias for site in fused)
        assert all(model.get_submodule(site.name).bias is None for site in fused)
    apart = find_sites(MODELS["timm beit bias apart"]())
    assert not any(site.direct_weight for site in apart)
    assert not any(site.separate_bias for site in find_sites(MODELS["timm vit"]()))


@pytest.mark.parametrize("family", MODELS)
def test_fused_linears_are_equal_parts(family: str) -> None:
    model = MODELS[family]()
    sites = find_sites(model)
    for site in sites:
        module = model.get_submodule(site.name)
        if site.role == "qkv":
            assert site.num_parts == 3
            weight = getattr(module, "in_proj_weight", None)
            weight = module.weight if weight is None else weight
            assert weight.shape[0] == 3 * weight.shape[1]
        elif site.role == "fc1":
            fc2 = next(s for s in sites if s.role == "fc2" and s.block == site.block)
            hidden = model.get_submodule(fc2.name).in_features
            assert module.out_features == site.num_parts * hidden
        else:
            assert site.num_parts == 1
    gated = any(site.num_parts == 2 for site in sites)
    assert gated == (family in ("timm dinov2 swiglu", "timm eva02 fused"))


@pytest.mark.parametrize("family", MODELS)
def test_only_swin_blocks_are_windowed(family: str) -> None:
    sites = find_sites(MODELS[family]())
    for site in sites:
        assert site.windowed == ("swin" in family.replace("swiglu", "") and site.block is not None)


def test_patch_merging_has_a_reduction_without_bias() -> None:
    for family in ("timm swin", "timm swinv2", "hf swin", "hf swinv2", "torchvision swin"):
        model = MODELS[family]()
        merging = [site for site in find_sites(model) if site.role == "reduction"]
        assert len(merging) == 1 and merging[0].block is None
        assert model.get_submodule(merging[0].name).bias is None


@pytest.mark.parametrize(
    ("name", "rank", "millions"),
    [
        ("resnet18", 1, 0.075),
        ("resnet18", 10, 0.286),
        ("resnet50", 1, 0.269),
        ("resnet50", 10, 0.851),
    ],
)
def test_convolutions_are_those_the_paper_counts(name: str, rank: int, millions: float) -> None:
    model = timm_model(name, num_classes=100)
    sites = find_sites(model)
    assert {site.role for site in sites} == {"conv", "head"}
    head = model.get_submodule(sites[-1].name)
    count = sum(parameter.numel() for parameter in head.parameters())
    for site in sites[:-1]:
        conv = model.get_submodule(site.name)
        count += rank * (conv.out_channels + conv.in_channels) * conv.kernel_size[0]
    # 269,497 and 850,870 parameters are printed as .269 and .851 M.
    assert abs(count / 1e6 - millions) < 6e-4


def test_distilled_models_have_two_heads_and_the_class_token_one_is_first() -> None:
    assert head_names(MODELS["timm deit distilled"]()) == ("head", "head_dist")
    expected = ("cls_classifier", "distillation_classifier")
    assert head_names(MODELS["hf deit teacher"]()) == expected


def test_no_head_where_the_network_gives_features() -> None:
    assert head_name(small("vit_base_patch16_224", num_classes=0)) is None
    assert head_name(hf_model("CLIPVisionModel", "CLIPVisionConfig")) is None


def test_a_classifier_under_another_name_is_asked_of_timm() -> None:
    model = nn.Module()
    model.body = nn.Conv2d(3, 4, 3)
    model.decide = nn.Linear(4, 2)
    model.get_classifier = lambda: model.decide
    assert head_name(model) == "decide"


def test_text_and_decoder_blocks_are_left_out() -> None:
    clip = hf_dual("CLIPModel", "CLIPConfig")
    assert {site.name.split(".")[0] for site in find_sites(clip)} == {"vision_model"}
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
        "decoder_intermediate_size": 16,
    }
    autoencoder = hf_model("ViTMAEForPreTraining", "ViTMAEConfig", **decoder)
    assert {site.name.split(".")[0] for site in find_sites(autoencoder)} == {"vit"}


def test_sites_inside_peft_are_the_same_under_its_prefix() -> None:
    model = small("vit_base_patch16_224")
    bare = find_sites(model)
    config = peft.LoraConfig(target_modules=["qkv", "fc1"], modules_to_save=["head"])
    wrapped = peft.get_peft_model(model, config)
    inside = find_sites(wrapped)
    assert [site.name for site in inside] == [f"base_model.model.{site.name}" for site in bare]
    assert [(site.role, site.block, site.num_parts) for site in inside] == [
        (site.role, site.block, site.num_parts) for site in bare
    ]
    assert head_name(wrapped) == "base_model.model.head"
    assert [site.name for site in find_sites(wrapped.base_model)] == [
        f"model.{site.name}" for site in bare
    ]


def test_sites_inside_a_wrapped_multihead_attention() -> None:
    config = peft.LoraConfig(target_modules=["self_attention"])
    wrapped = peft.get_peft_model(MODELS["torchvision vit"](), config)
    sites = {site.role: site for site in find_sites(wrapped) if site.block == 0}
    start = "base_model.model.encoder.layers.encoder_layer_0"
    assert sites["qkv"].name == f"{start}.self_attention"
    assert sites["attn_out"].name == f"{start}.self_attention.base_layer.out_proj"
    attention = unwrapped(wrapped.get_submodule(sites["qkv"].name))
    assert isinstance(attention, nn.MultiheadAttention)
    assert isinstance(unwrapped(wrapped.get_submodule(sites["attn_out"].name)), nn.Linear)


class Wrapper(nn.Module):
    """A layer around a whole block, as adapters outside the block need it."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)


def test_sites_inside_a_wrapped_block() -> None:
    for family in ("timm vit", "timm swin", "hf dinov2", "timm swinv2", "timm convnext"):
        model = MODELS[family]()
        bare = find_sites(model)
        for block in [site for site in bare if site.role == "block"]:
            model.set_submodule(block.name, Wrapper(model.get_submodule(block.name)))
        inside = find_sites(model)
        assert [site.role for site in inside] == [site.role for site in bare]
        assert [site.block for site in inside] == [site.block for site in bare]
        assert [site.windowed for site in inside] == [site.windowed for site in bare]
        assert [site.name.replace(".base_layer", "") for site in inside] == [
            site.name for site in bare
        ]
        assert all(model.get_submodule(site.name) is not None for site in inside)


def test_unknown_structure_says_what_was_looked_for() -> None:
    with pytest.raises(BackboneError, match=r"got Sequential with no block.*attn\.proj.*mlp\.fc1"):
        find_sites(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))


def test_a_vit_with_unknown_blocks_is_not_taken_for_a_convolutional_network() -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    model = small("vit_base_patch16_224", block_fn=ParallelScalingBlock)
    with pytest.raises(BackboneError, match="no block that is recognised"):
        find_sites(model)


def test_sites_with_roles_chooses_by_role_and_block() -> None:
    sites = find_sites(small("vit_base_patch16_224"))
    chosen = sites_with_roles(sites, ["fc1", "norm1", "final_norm"], blocks=[-1], needed_by="x")
    assert [site.name for site in chosen] == ["blocks.1.norm1", "blocks.1.mlp.fc1", "norm"]
    fused = sites_with_roles(sites, ["q", "v"], needed_by="x")
    assert [site.name for site in fused] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    split = sites_with_roles(find_sites(MODELS["hf vit"]()), ["qkv"], needed_by="x")
    assert [site.role for site in split] == ["q", "k", "v"] * 2


def test_sites_with_roles_refuses_what_is_not_there() -> None:
    sites = find_sites(small("vit_base_patch16_224"))
    with pytest.raises(BackboneError, match=r"role 'reduction'.*SSF acts.*patch_embed, norm1, qkv"):
        sites_with_roles(sites, ["reduction"], needed_by="SSF")
    with pytest.raises(BackboneError, match=r"got 'attn_ou'.*Did you mean attn_out"):
        sites_with_roles(sites, ["attn_ou"], needed_by="SSF")
    with pytest.raises(BackboneError, match=r"blocks of SSF: got 2, expected indices from -2 to 1"):
        sites_with_roles(sites, ["fc1"], blocks=[0, 2], needed_by="SSF")


def test_bundled_backbone_has_all_vit_roles() -> None:
    from vitune.backbones import load_backbone

    sites = find_sites(load_backbone("vitune/vit_micro_patch4_32").model)
    assert sum(site.role == "qkv" for site in sites) == 6


class Holding(nn.Module):
    """A user's own network around a backbone, which it keeps under a name that PEFT uses too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, small("vit_base_patch16_224", num_classes=0))
        self.classifier = nn.Linear(32, 3)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.get_submodule(self.name)(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: hf_model("DINOv3ViTModel", "DINOv3ViTConfig"),
        lambda: Holding("model"),
        lambda: Holding("base_model"),
    ],
    ids=["dinov3", "model", "base_model"],
)
def test_a_child_that_is_called_like_one_of_peft(build: Callable[[], nn.Module]) -> None:
    model = build()
    bare, heads, layout = find_sites(model), head_names(model), token_layout(model)
    assert heads == (("classifier",) if isinstance(model, Holding) else ())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["fc1", "up_proj"]))
    for again, prefix in ((wrapped.get_base_model(), ""), (wrapped, "base_model.model.")):
        assert [site.name for site in find_sites(again)] == [prefix + site.name for site in bare]
        assert head_names(again) == tuple(prefix + head for head in heads)
        assert token_layout(again) == layout
