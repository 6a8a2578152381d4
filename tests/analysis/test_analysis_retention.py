"""Retention: 1 where nothing changed, the hooks' features, and the model as it was."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from analysis_models import new_vit, perturb_trainable
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from vitune.analysis import linear_cka, measure_retention
from vitune.analysis.features import feature, recording
from vitune.errors import BackboneError, VituneError


def test_an_untrained_lora_keeps_everything(images: Tensor) -> None:
    model = get_peft_model(new_vit(), LoraConfig(target_modules=["qkv"], r=2))
    kept = measure_retention(model, [images], head=nn.Linear(24, 7))
    assert [part.cka for part in kept.blocks] == pytest.approx([1, 1])
    assert [part.cka_debiased for part in kept.blocks] == pytest.approx([1, 1])
    assert [part.name for part in kept.blocks] == ["blocks.0", "blocks.1"]
    assert (kept.decisions_kept, kept.num_images, kept.feature) == (1.0, 12, "class")


def test_features_are_the_class_tokens_after_each_block(
    lora_vit: PeftModel, images: Tensor, same_state
) -> None:
    lora_vit.train()
    unchanged = same_state(lora_vit)
    kept = measure_retention(lora_vit, images.split(5))
    unchanged()
    assert not any(module._forward_hooks for module in lora_vit.modules())
    base, merged = new_vit().eval(), copy.deepcopy(lora_vit).merge_and_unload().eval()
    with torch.no_grad():
        old = [tensor[:, 0] for tensor in _block_outputs(base, images)]
        new = [tensor[:, 0] for tensor in _block_outputs(merged, images)]
    expected = [linear_cka(a, b) for a, b in zip(old, new, strict=True)]
    assert [part.cka for part in kept.blocks] == pytest.approx(expected, abs=1e-5)
    assert kept.blocks[1].cka < 0.9999
    assert kept.decisions_kept is None


def test_parameters_that_were_frozen_stay_frozen(
    lora_vit: PeftModel, images: Tensor, same_state
) -> None:
    lora_vit.requires_grad_(False)
    unchanged = same_state(lora_vit)
    measure_retention(lora_vit, [images])
    unchanged()


def test_two_networks_give_what_the_peft_model_gives(lora_vit: PeftModel, images: Tensor) -> None:
    from_peft = measure_retention(lora_vit, [images])
    merged = copy.deepcopy(lora_vit).merge_and_unload()
    from_two = measure_retention(new_vit(), [images], tuned=merged)
    assert [part.cka for part in from_two.blocks] == pytest.approx(
        [part.cka for part in from_peft.blocks], abs=1e-5
    )


def test_an_adapter_that_is_merged_in_is_taken_out_of_a_copy(
    lora_vit: PeftModel, images: Tensor, same_state
) -> None:
    apart = measure_retention(lora_vit, [images])
    lora_vit.merge_adapter()
    unchanged = same_state(lora_vit)
    together = measure_retention(lora_vit, [images])
    unchanged()
    assert [part.cka for part in together.blocks] == pytest.approx(
        [part.cka for part in apart.blocks], abs=1e-5
    )


def test_decisions_are_those_of_the_base_head_on_what_the_head_is_fed(
    lora_vit: PeftModel, images: Tensor
) -> None:
    perturb_trainable(lora_vit, size=0.4)
    head = new_vit(seed=3).head
    kept = measure_retention(lora_vit, images.split(4), head=head)
    merged = copy.deepcopy(lora_vit).merge_and_unload().eval()
    with torch.no_grad():
        base = new_vit().eval()
        old = head(base.forward_head(base.forward_features(images), pre_logits=True))
        new = head(merged.forward_head(merged.forward_features(images), pre_logits=True))
    same = (old.argmax(1) == new.argmax(1)).double().mean().item()
    assert kept.decisions_kept == pytest.approx(same)
    assert 0 < same < 1


def test_a_network_without_head_feeds_its_output(images: Tensor) -> None:
    base = new_vit(num_classes=0)
    kept = measure_retention(base, [images], tuned=copy.deepcopy(base), head=nn.Linear(24, 3))
    assert kept.decisions_kept == 1


def test_images_are_read_only_up_to_the_limit(lora_vit: PeftModel, images: Tensor) -> None:
    def endless():
        while True:
            yield images

    assert measure_retention(lora_vit, endless(), max_images=30).num_images == 30


def test_swin_and_resnet_are_averaged_over_positions() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=16,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
    )
    resnet = timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, [1, 1, 1, 1], channels=(4, 4, 6, 8), stem_width=4
    )
    images = torch.randn(5, 3, 16, 16)
    for network, widths in ((swin, [8, 16]), (resnet, [4, 4, 6, 8])):
        with torch.no_grad(), recording(network.eval(), with_head=False) as record:
            assert [tensor.shape[1] for tensor in record(images).values()] == widths
        kept = measure_retention(network, [images], tuned=copy.deepcopy(network))
        assert kept.feature == "mean"
        assert all(part.cka is None or part.cka == pytest.approx(1) for part in kept.blocks)


def test_feature_of_each_layout() -> None:
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert feature(tokens, True, False).tolist() == [[0, 1, 2, 3]]
    assert feature(tokens, False, False).tolist() == [[4, 5, 6, 7]]
    maps = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert feature(maps, False, True).tolist() == [[1.5, 5.5, 9.5]]
    assert feature(maps, False, False).tolist() == [[5, 6]]


def test_what_cannot_be_measured_is_refused(lora_vit: PeftModel, images: Tensor) -> None:
    with pytest.raises(VituneError, match=r"model: got 'VisionTransformer' without adapters"):
        measure_retention(new_vit(), [images])
    with pytest.raises(VituneError, match=r"images: got 3, expected at least 4"):
        measure_retention(lora_vit, [images[:3]])
    with pytest.raises(VituneError, match=r"images: got 0"):
        measure_retention(lora_vit, [])
    unknown = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(BackboneError, match=r"no block that is recognised"):
        measure_retention(unknown, [images], tuned=unknown)
    tokens_out = new_vit(num_classes=0, global_pool="")
    with pytest.raises(VituneError, match=r"head: got a network without a head whose output is"):
        measure_retention(tokens_out, [images], tuned=tokens_out, head=nn.Linear(24, 2))


def _block_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    tokens = network._pos_embed(network.patch_embed(images))
    outputs = []
    for block in network.blocks:
        tokens = block(tokens)
        outputs.append(tokens)
    return outputs
