"""Heads that are no plain classifier: named where they stay frozen, trained where named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from vitune.backbones import logits_of
from vitune.testing.cases import config_of, layers_of


def _segformer() -> nn.Module:
    sizes = {
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1] * 4,
        "num_attention_heads": [1, 2, 3, 4],
    }
    config = transformers.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=3)
    return transformers.SegformerForSemanticSegmentation(config)


def _upernet() -> nn.Module:
    backbone = transformers.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1] * 4,
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_features=[f"stage{number}" for number in (1, 2, 3, 4)],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        num_labels=3,
        auxiliary_channels=8,
        auxiliary_in_channels=64,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def _yolos() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    config = transformers.YolosConfig(
        **sizes, intermediate_size=64, image_size=[32, 32], num_detection_tokens=5, num_labels=3
    )
    return transformers.YolosForObjectDetection(config)


@pytest.mark.parametrize(
    ("make", "heads", "place"),
    [
        (_segformer, ["decode_head"], "segformer."),
        (_upernet, ["decode_head", "auxiliary_head"], "backbone."),
        (_yolos, ["class_labels_classifier", "bbox_predictor"], "vit."),
    ],
    ids=["segformer", "upernet", "yolos"],
)
@pytest.mark.parametrize("method", ["rlrr", "ssf", "hta", "adaptformer", "lora_add"])
def test_heads_of_other_tasks_are_named(
    make: Callable[[], nn.Module], heads: list[str], place: str, method: str
) -> None:
    with pytest.warns(UserWarning, match=rf"found; {', '.join(heads)} stay frozen\. Name what"):
        silent = get_peft_model(make(), config_of(method))
    places = [layer.site.name for layer in layers_of(silent)]
    assert places and all(name.startswith(place) for name in places)
    model = get_peft_model(make(), config_of(method, modules_to_save=heads)).eval()
    logits_of(model(torch.randn(1, 3, 32, 32))).sum().backward()
    for head in heads:
        gradients = [
            parameter.grad
            for name, parameter in model.named_parameters()
            if f"{head}.modules_to_save" in name and parameter.requires_grad
        ]
        assert gradients
        # Nothing but training reads the auxiliary head; boxes are another output.
        is_read = head in ("decode_head", "class_labels_classifier")
        assert any(gradient is not None for gradient in gradients) == is_read
