"""Google's ViT checkpoints (`.npz`, JAX layout): a strict check, then timm's own loader."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitune.backbones.weight_file import report_differences
from vitune.backbones.wording import one_line
from vitune.errors import BackboneError

_LAYERS = {
    "LayerNorm_0/": ("scale", "bias"),
    "LayerNorm_2/": ("scale", "bias"),
    "MlpBlock_3/Dense_0/": ("kernel", "bias"),
    "MlpBlock_3/Dense_1/": ("kernel", "bias"),
    "MultiHeadDotProductAttention_1/query/": ("kernel", "bias"),
    "MultiHeadDotProductAttention_1/key/": ("kernel", "bias"),
    "MultiHeadDotProductAttention_1/value/": ("kernel", "bias"),
    "MultiHeadDotProductAttention_1/out/": ("kernel", "bias"),
}
_HEAD = ("head/", "pre_logits/")
_POSITIONS = "Transformer/posembed_input/pos_embedding"


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in the file, without its `opt/target/` prefix.

    Raises:
        BackboneError: the file is damaged, or holds pickled objects.
    """
    try:
        with path.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive of them")
            shapes = {name: arrays[name].shape for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BackboneError(
            f"checkpoint: got {str(path)!r}, expected Google's ViT arrays. "
            f"Reading it failed: {one_line(error)}"
        ) from error
    return {name.removeprefix("opt/target/"): shape for name, shape in shapes.items()}


def npz_num_classes(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Classes of the file's head; None without one, or with a preceding layer that timm drops."""
    if "pre_logits/kernel" in shapes or "head/bias" not in shapes:
        return None
    return int(shapes["head/bias"][-1])


def load_google_npz(model: nn.Module, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Copy Google's arrays into a timm `VisionTransformer`, resampling position embeddings.

    The head is copied where its class count is the model's.

    Raises:
        BackboneError: the model is of another kind, or arrays are missing, too many or misshapen.
    """
    if not isinstance(model, VisionTransformer):
        raise BackboneError(
            f"checkpoint: got {str(path)!r} for {type(model).__name__}, expected a timm ViT for "
            f"Google's .npz. Use an architecture such as vit_base_patch16_224."
        )
    expected = _expected(model)
    given = {name: shape for name, shape in shapes.items() if not name.startswith(_HEAD)}
    report_differences(
        path,
        type(model).__name__,
        missing=sorted(set(expected) - set(given)),
        unexpected=sorted(set(given) - set(expected)),
        reshaped=[
            f"{name} {given[name]} instead of {shape}"
            for name, shape in sorted(expected.items())
            if name in given and not _fits(name, given[name], shape)
        ],
    )
    model.load_pretrained(str(path))


def _expected(model: VisionTransformer) -> dict[str, tuple[int, ...]]:
    """Names and shapes that Google's file has for a model of this size."""
    width: int = model.embed_dim
    blocks = list(model.blocks)
    heads, hidden = blocks[0].attn.num_heads, blocks[0].mlp.fc1.out_features
    height, across = model.patch_embed.patch_size
    split = (heads, width // heads)
    kernels = {
        "Dense_0": (width, hidden),
        "Dense_1": (hidden, width),
        "out": (*split, width),
    }
    biases = {"Dense_0": (hidden,), "query": split, "key": split, "value": split}
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width),
        "embedding/kernel": (height, across, 3, width),
        "embedding/bias": (width,),
        _POSITIONS: (1, -1, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    for index in range(len(blocks)):
        for layer, arrays in _LAYERS.items():
            part = layer.split("/")[-2]
            for array in arrays:
                name = f"Transformer/encoderblock_{index}/{layer}{array}"
                if array == "kernel":
                    shapes[name] = kernels.get(part, (width, *split))
                else:
                    shapes[name] = biases.get(part, (width,))
    return shapes


def _fits(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal shapes; position embeddings may have any square grid, plus the class token's."""
    if name != _POSITIONS:
        return given == expected
    side = math.isqrt(max(given[1] - 1, 0)) if len(given) == 3 else 0
    return side > 0 and given == (1, side * side + 1, expected[2])
