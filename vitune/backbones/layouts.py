"""Where the libraries keep a block's parts: role -> candidate paths below the block or the tower.

A candidate is a tuple of paths that must all exist; the first complete candidate wins.
"""

from __future__ import annotations

ATTENTION = ("attn", "attention", "self_attn", "self_attention", "attention.self", "xca")
"""The module inside a block that attends."""

LINEARS: dict[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (("attn.qkv",), ("attention.qkv",), ("attn.kv",), ("attn.qk",), ("xca.qkv",)),
    "q": (
        ("attn.q_proj",),
        ("attention.q_proj",),
        ("self_attn.q_proj",),
        ("attention.attention.query",),
        ("attention.self.query",),
        ("attn.q",),
    ),
    "k": (
        ("attn.k_proj",),
        ("attention.k_proj",),
        ("self_attn.k_proj",),
        ("attention.attention.key",),
        ("attention.self.key",),
        ("attn.k",),
    ),
    "v": (
        ("attn.v_proj",),
        ("attention.v_proj",),
        ("self_attn.v_proj",),
        ("attention.attention.value",),
        ("attention.self.value",),
        ("attn.v",),
    ),
    "attn_out": (
        ("attn.proj",),
        ("attention.o_proj",),
        ("self_attn.out_proj",),
        ("attention.output.dense",),
        ("self_attention.out_proj",),
        ("attn.out_proj",),
        ("attention.proj",),
        ("xca.proj",),
    ),
    "fc1": (
        ("mlp.fc1",),
        ("mlp.fc1_g", "mlp.fc1_x"),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.up_proj",),
        ("mlp.w12",),
        ("mlp.weights_in",),
        ("mlp.w1", "mlp.w2"),
        ("intermediate.dense",),
        ("mlp.lin1",),
        ("mlp.c_fc",),
        ("mlp.0",),
        ("pwconv1",),
        ("block.3",),
    ),
    "fc2": (
        ("mlp.fc2",),
        ("mlp.down_proj",),
        ("mlp.w3",),
        ("mlp.weights_out",),
        ("output.dense",),
        ("mlp.lin2",),
        ("mlp.c_proj",),
        ("mlp.3",),
        ("mlp.2",),
        ("pwconv2",),
        ("block.5",),
    ),
}
"""Linear layers of a block."""

FUSED_ATTENTION = ("self_attention", "attn", "self_attn")
"""Where a block keeps a `torch.nn.MultiheadAttention`, whose q, k, v are one parameter."""

NORMS: dict[str, tuple[str, ...]] = {
    "norm1": ("norm1", "layernorm_before", "layer_norm1", "ln_1", "attention_norm"),
    "norm2": ("norm2", "layernorm_after", "layer_norm2", "ln_2", "ffn_norm"),
}
"""Normalisations of a block."""

DEPTHWISE = ("conv_dw", "dwconv", "block.0")
"""The depthwise convolution that a ConvNeXt block has instead of attention."""

CONV_BLOCK_NORMS: dict[str, tuple[str, ...]] = {
    "norm1": (),
    "norm2": ("norm", "layernorm", "block.2"),
}
"""A ConvNeXt block normalises once, before its MLP."""

PATCH_EMBED = (
    "patch_embed.proj",
    "patch_embed.projection",
    "embeddings.patch_embeddings.projection",
    "embeddings.patch_embeddings",
    "embeddings.patch_embedding",
    "embeds.proj",
    "conv_proj",
    "conv1",
    "stem.0",
    "features.0.0",
)
"""The layer that turns pixels into patch tokens, below a tower."""

FINAL_NORM = (
    "norm",
    "fc_norm",
    "layernorm",
    "post_layernorm",
    "pooler.layernorm",
    "head.norm",
    "ln",
    "ln_post",
    "classifier.0",
)
"""The normalisation after the last block, below a tower."""

IDLE_FINAL_NORM = frozenset({"CLIPForImageClassification", "MetaClip2ForImageClassification"})
"""Classes that call the final norm but classify its input."""

REDUCTION = "reduction"
"""Name of the linear layer of a Swin-like patch merging."""

HEADS = (
    "head.fc",
    "head",
    "classifier",
    "classifier.1",
    "heads.head",
    "fc",
    "cls_classifier",
    "head.l",
    "classifier.2",
)
"""The classifier, below the network; `SECOND_HEADS` are the further ones of a distilled model."""

SECOND_HEADS = ("head_dist", "head_dist.l", "distillation_classifier", "dist_head")
