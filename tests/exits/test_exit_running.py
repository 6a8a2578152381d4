"""Compaction: who leaves, what the others get, and that the network stays as it was."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitune.backbones import logits_of
from vitune.errors import BackboneError, VituneError
from vitune.exits.exit_heads import ExitHeads, norm_of
from vitune.exits.leaving import EarlyExit, Exit, Outcome
from vitune.exits.points import find_trunk
from vitune.exits.thresholds import NEVER, leaving_exit

CLASSES, AT = 7, (1, 3)


def timm_vit(**options: object) -> nn.Module:
    settings: dict[str, object] = {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2,
        "num_classes": CLASSES,
    }  # fmt: skip
    return VisionTransformer(**{**settings, **options})


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
            image_size=32, patch_size=8, num_labels=CLASSES,
        )
    )  # fmt: skip


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer as TorchvisionViT

    model = TorchvisionViT(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64,
        num_classes=CLASSES,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


NETWORKS = {
    "timm": timm_vit,
    "mean of patches, registers": lambda: timm_vit(
        class_token=False, reg_tokens=2, global_pool="avg"
    ),
    "transformers": hf_vit,
    "torchvision": torchvision_vit,
}


def with_exits(model: nn.Module) -> tuple[EarlyExit, ExitHeads]:
    trunk = find_trunk(model)
    heads = ExitHeads(len(AT), trunk.width, CLASSES, rank=4)
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=0.5)
    norm = norm_of(model, trunk)
    exits = [
        Exit(after, trunk.blocks[after - 1], heads.head(index, trunk, norm))
        for index, after in enumerate(AT)
    ]
    return EarlyExit(model, exits), heads


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[request.param]().eval().requires_grad_(False)


@torch.inference_mode()
def test_each_image_gets_the_logits_of_its_exit(network: nn.Module) -> None:
    runner, _ = with_exits(network)
    images = torch.randn(16, 3, 32, 32)
    every = runner.all_logits(images)
    assert torch.equal(every[-1], logits_of(network(images)))
    confidence = every.double().softmax(-1).amax(-1)
    values = tuple(row.sort().values[7:9].mean().item() for row in confidence[:2])
    left = leaving_exit(confidence, values)
    assert len(left.unique()) == 3
    outcome = EarlyExit(network, runner.exits, values)(images)
    assert torch.equal(outcome.left, left)
    expected = every.gather(0, left.view(1, -1, 1).expand(1, -1, CLASSES)).squeeze(0)
    assert torch.allclose(outcome.logits, expected, atol=1e-5)
    for index, image in enumerate(images):
        alone = EarlyExit(network, runner.exits, values)(image.unsqueeze(0))
        assert alone.left.item() == left[index]
        assert torch.allclose(alone.logits[0], expected[index], atol=1e-5)
    assert torch.equal(logits_of(network(images)), every[-1])


@torch.inference_mode()
def test_the_temperature_is_that_of_the_whole_network() -> None:
    """Heads of early exits have their own in their weights."""
    outcome = Outcome(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), 1)
    assert outcome.tempered(4.0).tolist() == [[2.0, 0.0], [0.5, 0.0]]


def test_nobody_leaves_and_everybody_leaves(network: nn.Module) -> None:
    runner, _ = with_exits(network)
    images = torch.randn(3, 3, 32, 32)
    nobody = runner(images)
    assert runner.values == (NEVER, NEVER) and (nobody.left == 2).all()
    assert torch.equal(nobody.logits, logits_of(network(images)))
    ran: list[Tensor] = []
    handle = network.get_submodule(find_trunk(network).blocks[1]).register_forward_hook(
        lambda *_: ran.append(images)
    )
    everybody = EarlyExit(network, runner.exits, (0.0, 0.0))(images)
    handle.remove()
    assert (everybody.left == 0).all() and not ran
    assert torch.allclose(everybody.logits, runner.all_logits(images)[0], atol=1e-6)


@torch.inference_mode()
def test_later_blocks_see_the_smaller_batch(network: nn.Module) -> None:
    runner, _ = with_exits(network)
    sizes: list[int] = []
    handles = [
        network.get_submodule(block).register_forward_pre_hook(
            lambda _, given: sizes.append(len(given[0]))
        )
        for block in find_trunk(network).blocks
    ]
    outcome = runner.forced(torch.randn(10, 3, 32, 32), (0.4, 0.3))
    for handle in handles:
        handle.remove()
    assert sizes == [10, 6, 6, 3]
    assert outcome.left.tolist() == [0] * 4 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("at", [(0, 2), (4,), (2, 2), (), (-1,)])
def test_exits_outside_the_depth(at: tuple[int, ...]) -> None:
    with pytest.raises(VituneError, match=r"--at: got .*, expected different numbers .* 1 to 3"):
        find_trunk(timm_vit()).check(at)


def test_networks_without_exits() -> None:
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4
    )
    with pytest.raises(BackboneError, match=r"exits: got a backbone with windows"):
        find_trunk(swin)


def test_a_method_that_mixes_tokens() -> None:
    from peft import get_peft_model

    from vitune.methods import get_method

    model = timm_vit()
    mixing = get_peft_model(model, get_method("lily").configure(model))
    with pytest.raises(BackboneError, match=r"exits: got a method that mixes tokens"):
        find_trunk(mixing)
