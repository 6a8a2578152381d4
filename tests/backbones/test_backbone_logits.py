"""Logits from every kind of output, and the classifier on a bare tower."""

from __future__ import annotations

import pytest
import torch
from backbone_zoo import MODELS, hf_model, image
from torch import nn

from vitune.backbones import TowerClassifier, logits_of
from vitune.errors import BackboneError


def test_logits_of_every_kind_of_output() -> None:
    logits = torch.randn(2, 3)
    assert logits_of(logits) is logits
    assert logits_of({"logits": logits}) is logits
    torch.testing.assert_close(logits_of((logits, 3 * logits)), 2 * logits)
    output = MODELS["hf vit"]().eval()(image())
    assert logits_of(output) is output.logits


def test_a_distilled_model_in_training_gives_the_mean_of_its_heads() -> None:
    model = MODELS["timm deit distilled"]()
    model.set_distilled_training(True)
    pixels = image()
    pair = model.train()(pixels)
    assert isinstance(pair, tuple)
    torch.testing.assert_close(logits_of(pair), model.eval()(pixels))


@pytest.mark.parametrize("output", [None, (), ("logits",), {"features": torch.zeros(1)}])
def test_no_logits(output: object) -> None:
    with pytest.raises(BackboneError, match=r"output of the backbone: got \w+, expected logits"):
        logits_of(output)


def test_tower_classifier_reads_the_pooled_output() -> None:
    tower = hf_model("CLIPVisionModel", "CLIPVisionConfig").eval()
    model = TowerClassifier(tower, nn.Linear(32, 3)).eval()
    pixels = image()
    expected = model.head(tower(pixels).pooler_output)
    torch.testing.assert_close(model(pixels), expected)


def test_tower_without_pooled_output_gives_class_token_or_mean() -> None:
    mae = hf_model("ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0).eval()
    pixels = image()
    features = TowerClassifier(mae, nn.Identity())(pixels)
    torch.testing.assert_close(features, mae(pixels).last_hidden_state[:, 0])
    siglip = hf_model("SiglipVisionModel", "SiglipVisionConfig", vision_use_head=False).eval()
    features = TowerClassifier(siglip, nn.Identity())(pixels)
    torch.testing.assert_close(features, siglip(pixels).last_hidden_state.mean(dim=1))
