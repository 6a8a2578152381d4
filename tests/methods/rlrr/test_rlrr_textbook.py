"""Training RLRR follows the method as written down, on timm and on transformers alike."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from rlrr_models import CLASSES, hf_vit, images, plain, random_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from vitune.backbones.sites import find_sites
from vitune.methods import MethodLayer, RLRRConfig

DEPTH, HEADS, NUM_STEPS = 2, 2, 20
LR, WEIGHT_DECAY = 2e-3, 0.05
DECAYED = ("scale_out", "scale_in", "head.weight")

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT reads it
)


def textbook_linear(x: Tensor, name: str, w: dict, t: dict) -> Tensor:
    """W' = W + s_out ⊙ W ⊙ s_in, b' = b + f, y = x W'ᵀ + b'."""
    weight = w[f"{name}.weight"]
    weight = weight + t[f"{name}.scale_out"] * weight * t[f"{name}.scale_in"]
    return x @ weight.T + w[f"{name}.bias"] + t[f"{name}.shift"]


def textbook_norm(x: Tensor, name: str, w: dict, t: dict) -> Tensor:
    """y ← γ ⊙ LN(x) + β."""
    y = F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)
    return t[f"{name}.scale"] * y + t[f"{name}.shift"]


def textbook_vit(x: Tensor, w: dict, t: dict) -> Tensor:
    """Logits of a plain ViT under RLRR, `w` frozen and `t` trained."""
    x = F.conv2d(x, w["patch_embed.weight"], w["patch_embed.bias"], stride=8)
    x = x.flatten(2).transpose(1, 2) * t["patch_embed.scale"] + t["patch_embed.shift"]
    x = torch.cat([w["cls"].expand(len(x), -1, -1), x], dim=1) + w["pos"]
    for block in range(DEPTH):
        y = textbook_norm(x, f"{block}.norm1", w, t)
        q, k, v = (
            textbook_linear(y, f"{block}.{part}", w, t).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in "qkv"
        )
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        y = (scores @ v).transpose(1, 2).flatten(2)
        x = x + textbook_linear(y, f"{block}.attn_out", w, t)
        y = textbook_norm(x, f"{block}.norm2", w, t)
        y = F.gelu(textbook_linear(y, f"{block}.fc1", w, t))
        x = x + textbook_linear(y, f"{block}.fc2", w, t)
    return textbook_norm(x, "final_norm", w, t)[:, 0] @ t["head.weight"].T + t["head.bias"]


def by_place(values: dict[str, Tensor], block: int | None, role: str) -> dict[str, Tensor]:
    """Values keyed by block and role, those of a fused qkv taken apart."""
    prefix = "" if block is None else f"{block}."
    if role != "qkv":
        return {f"{prefix}{role}.{key}": value for key, value in values.items()}
    return {
        f"{prefix}{part}.{key}": chunk
        for key, value in values.items()
        for part, chunk in zip("qkv", value.chunk(3), strict=True)
    }


def trained_values(adapted: PeftModel) -> dict[str, Tensor]:
    """Copies of all trained values, shaped as the textbook writes them."""
    found: dict[str, Tensor] = {}
    for layer in adapted.modules():
        if isinstance(layer, MethodLayer):
            values = {
                name: getattr(layer, name)["default"].detach() for name in layer.adapter_layer_names
            }
            found |= by_place(values, layer.site.block, layer.site.role)
        elif isinstance(layer, ModulesToSaveWrapper):
            head = layer.modules_to_save["default"]
            found |= {"head.weight": head.weight.detach(), "head.bias": head.bias.detach()}
    return {
        name: (value.flatten(0, 1) if name.endswith("scale_in") else value).clone()
        for name, value in found.items()
    }


def frozen_values(base: nn.Module, cls_token: Tensor, positions: Tensor) -> dict[str, Tensor]:
    found = {"cls": cls_token.detach(), "pos": positions.detach()}
    for site in find_sites(base):
        if site.role != "block":
            module = base.get_submodule(site.name)
            values = {"weight": module.weight.detach(), "bias": module.bias.detach()}
            found |= by_place(values, site.block, site.role)
    return found


def timm_case() -> tuple[nn.Module, dict[str, Tensor]]:
    model = random_backbone("timm_vit")
    return model, frozen_values(model, model.cls_token, model.pos_embed)


def transformers_case() -> tuple[nn.Module, dict[str, Tensor]]:
    """The timm case's weights in a transformers ViT."""
    _, weights = timm_case()
    model = hf_vit().eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    embeddings = model.vit.embeddings
    values = frozen_values(model, embeddings.cls_token, embeddings.position_embeddings)
    assert values.keys() == weights.keys()
    for name, value in values.items():
        value.copy_(weights[name])
    return model, weights


def train_step(logits: Tensor, labels: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimiser.step()


def adam(decayed: list[Tensor], rest: list[Tensor]) -> torch.optim.Optimizer:
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest}]
    return torch.optim.AdamW(groups, lr=LR, weight_decay=0.0)


def undecayed(adapted: PeftModel) -> set[int]:
    return {
        id(parameter)
        for layer in adapted.modules()
        if isinstance(layer, MethodLayer)
        for name in layer.no_decay
        for parameter in getattr(layer, name).values()
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", [timm_case, transformers_case])
def test_twenty_steps_follow_the_textbook(case, dtype, tolerance):
    base, weights = case()
    base, weights = base.to(dtype), {name: value.to(dtype) for name, value in weights.items()}
    adapted = get_peft_model(base, RLRRConfig()).train()
    trained = {name: nn.Parameter(value) for name, value in trained_values(adapted).items()}
    start = trained_values(adapted)
    spared = undecayed(adapted)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    ours = adam(
        [p for p in parameters if id(p) not in spared and p.dim() > 1],
        [p for p in parameters if id(p) in spared or p.dim() == 1],
    )
    textbook = adam(
        [p for name, p in trained.items() if name.endswith(DECAYED)],
        [p for name, p in trained.items() if not name.endswith(DECAYED)],
    )
    for _ in range(NUM_STEPS):
        x, labels = images(8).to(dtype), torch.randint(CLASSES, (8,))
        train_step(plain(adapted(x)), labels, ours)
        train_step(textbook_vit(x, weights, trained), labels, textbook)

    result = trained_values(adapted)
    assert result.keys() == trained.keys() and len(result) == 12 * 3 + 2 * (2 * DEPTH + 2) + 2
    for name, parameter in trained.items():
        expected = parameter.detach()
        if name.endswith("k.shift"):
            # The same number on all scores of a query changes no softmax: the exact gradient is 0,
            # and Adam makes steps of the rounding error.
            assert expected.norm() < 0.05 * trained[name.replace("k.", "q.")].norm()
            assert result[name].norm() < 0.05 * result[name.replace("k.", "q.")].norm()
            continue
        assert (expected - start[name]).norm() > 1e-3
        assert (result[name] - expected).norm() <= tolerance * expected.norm(), name
