"""FacT's official layout and checkpoints, against ΔW worked out element by element."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitune.errors import AdapterError, VituneError
from vitune.methods import FacTTKConfig, FacTTTConfig, load_official_fact

WIDTH, RANK, DEPTH, SCALE = 24, 3, 2, 0.7
SLICES = {"attn.qkv": (0, 3), "attn.proj": (3, 1), "mlp.fc1": (4, 4), "mlp.fc2": (8, 4)}
"""Where a block's slices of P begin, and how many a linear has."""


@pytest.fixture
def network() -> VisionTransformer:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=4
    ).double()


def checkpoint(tucker: bool) -> dict[str, Tensor]:
    """A file as the authors' `save` writes it, with random numbers."""
    shapes: dict[str, tuple[int, ...]] = {
        "FacTu.weight": (RANK, WIDTH),
        "FacTv.weight": (WIDTH, RANK),
        "head.weight": (4, WIDTH),
        "head.bias": (4,),
    }
    if tucker:
        shapes |= {"FacTp": (RANK, 12 * DEPTH), "FacTc": (RANK, RANK, RANK)}
    else:
        for block in range(DEPTH):
            for part in "qkv":
                shapes[f"blocks.{block}.attn.{part}_FacTs.weight"] = (RANK, RANK)
            shapes[f"blocks.{block}.attn.proj_FacTs.weight"] = (RANK, RANK)
            shapes[f"blocks.{block}.mlp.fc1_FacTs.weight"] = (4 * RANK, RANK)
            shapes[f"blocks.{block}.mlp.fc2_FacTs.weight"] = (RANK, 4 * RANK)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def tucker_change(state: dict[str, Tensor], block: int, linear: str) -> Tensor:
    """s · V M U of one linear, each element of M by its own sum."""
    begin, number = SLICES[linear]
    p = state["FacTp"][:, 12 * block + begin : 12 * block + begin + number]
    c = state["FacTc"]
    slices = [
        [[sum(c[a, b, k] * p[k, m] for k in range(RANK)) for m in range(number)]
         for b in range(RANK)]
        for a in range(RANK)
    ]  # fmt: skip
    up, down = state["FacTv.weight"], state["FacTu.weight"]
    cores = []
    for m in range(number):
        core = torch.zeros(RANK, RANK, dtype=torch.float64)
        for out in range(RANK):
            for inn in range(RANK):
                if linear == "mlp.fc1":  # column m·r + out of the r × 4r reading, row inn
                    column = m * RANK + out
                    core[out, inn] = slices[inn][column // number][column % number]
                elif linear == "mlp.fc2":  # column m·r + inn, row out
                    column = m * RANK + inn
                    core[out, inn] = slices[out][column // number][column % number]
                else:
                    core[out, inn] = slices[inn][out][m]
        cores.append(SCALE * up @ core @ down)
    return torch.cat(cores, dim=1 if linear == "mlp.fc2" else 0)


def train_change(state: dict[str, Tensor], block: int, linear: str) -> Tensor:
    """The same for TT, whose cores stand in the file."""
    up, down = state["FacTv.weight"], state["FacTu.weight"]
    prefix = f"blocks.{block}.{linear}"
    if linear == "attn.qkv":
        cores = [state[f"blocks.{block}.attn.{part}_FacTs.weight"] for part in "qkv"]
    elif linear == "mlp.fc2":
        cores = list(state[f"{prefix}_FacTs.weight"].split(RANK, 1))
    else:
        cores = list(state[f"{prefix}_FacTs.weight"].split(RANK, 0))
    parts = [SCALE * up @ core @ down for core in cores]
    return torch.cat(parts, dim=1 if linear == "mlp.fc2" else 0)


def changes(model: PeftModel, plain: VisionTransformer) -> dict[tuple[int, str], Tensor]:
    merged = copy.deepcopy(model).merge_and_unload()
    return {
        (block, linear): merged.blocks[block].get_submodule(linear).weight
        - plain.blocks[block].get_submodule(linear).weight
        for block in range(DEPTH)
        for linear in SLICES
    }


@pytest.mark.parametrize("tucker", [True, False], ids=["tk", "tt"])
def test_a_checkpoint_of_the_authors_gives_their_weights(
    tucker: bool, network: VisionTransformer
) -> None:
    kind = FacTTKConfig(layout="official") if tucker else FacTTTConfig()
    kind.rank, kind.scale = RANK, SCALE
    model = get_peft_model(copy.deepcopy(network), kind).double().eval()
    state = checkpoint(tucker)
    load_official_fact(model, state)
    expected = tucker_change if tucker else train_change
    for (block, linear), change in changes(model, network).items():
        torch.testing.assert_close(change, expected(state, block, linear), rtol=1e-10, atol=1e-12)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    unmerged = model(x)
    merged = model.merge_and_unload()
    torch.testing.assert_close(unmerged, merged(x), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(merged.head.weight, state["head.weight"])
    torch.testing.assert_close(merged.head.bias, state["head.bias"])


def test_the_layouts_are_different_functions_of_the_same_numbers(
    network: VisionTransformer,
) -> None:
    found = []
    for layout in ("blocks", "official"):
        config = FacTTKConfig(rank=RANK, scale=SCALE, layout=layout)
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(network), config).double()
        with torch.no_grad():
            for parameter in model.base_model.shared_state.parameters():
                parameter.copy_(torch.randn_like(parameter))
        found.append(changes(model, network))
    blocks, official = found
    for key in blocks:
        assert not torch.allclose(blocks[key], official[key])


@pytest.mark.parametrize("layout", ["blocks", "official"])
def test_gradients_of_both_layouts_are_those_of_the_merged_weight(
    layout: str, network: VisionTransformer
) -> None:
    model = get_peft_model(network, FacTTKConfig(rank=RANK, layout=layout)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "head" not in name:
                parameter.copy_(torch.randn_like(parameter))
    layer = model.base_model.model.blocks[0].mlp.fc1
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    own = [p for p in model.parameters() if p.requires_grad]
    by_layer = torch.autograd.grad(layer(x).square().sum(), own, allow_unused=True)
    tensors = layer.adapt(layer.base_tensors(), "default")
    merged = layer.functional(x, tensors)
    by_weight = torch.autograd.grad(merged.square().sum(), own, allow_unused=True)
    for one, other in zip(by_layer, by_weight, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_what_is_no_such_checkpoint_is_refused(network: VisionTransformer) -> None:
    with pytest.raises(VituneError, match="layout: got 'theirs', expected one of"):
        FacTTKConfig(layout="theirs")
    wrong = get_peft_model(copy.deepcopy(network), FacTTKConfig(rank=RANK))
    with pytest.raises(AdapterError, match="with layout 'blocks', expected fact_tt, or fact_tk"):
        load_official_fact(wrong, checkpoint(True))
    model = get_peft_model(network, FacTTKConfig(rank=RANK, layout="official"))
    state = checkpoint(True)
    with pytest.raises(AdapterError, match=r"got \['FacTp'\] missing or left over"):
        load_official_fact(model, {k: v for k, v in state.items() if k != "FacTp"})
    with pytest.raises(AdapterError, match=r"got FacTc of shape \(2, 2, 2\), expected 1 parts"):
        load_official_fact(model, {**state, "FacTc": torch.zeros(2, 2, 2)})
