"""Loading by name: bundled, timm and torchvision backbones, and every refusal on the way."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

import pytest
import timm
import torch
from backbone_zoo import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

from vitune.backbones import (
    Backbone,
    absolute_backbone,
    bundled,
    bundled_names,
    find_sites,
    fingerprint,
    load_backbone,
    logits_of,
    preprocessing_of,
)
from vitune.errors import BackboneError
from vitune.preprocessing import Preprocessing

MICRO = "vitune/vit_micro_patch4_32"


def outputs(backbone: Backbone, batch: int = 2) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(backbone.model(torch.randn(batch, 3, *backbone.preprocessing.image_size)))


def test_bundled_backbone_keeps_its_head() -> None:
    backbone = load_backbone(MICRO)
    stored = load_file(bundled.WEIGHTS / "vit_micro_patch4_32.safetensors")
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, stored[name].float())
    assert (backbone.num_classes, backbone.name) == (200, MICRO)
    assert backbone.source == "bundled with vitune"
    assert backbone.notices == ()
    assert not backbone.model.training
    half = (0.5, 0.5, 0.5)
    assert backbone.preprocessing == Preprocessing((32, 32), half, half, "bicubic")


def test_bundled_weights_are_small_and_listed() -> None:
    assert bundled_names() == (MICRO,)
    assert sum(path.stat().st_size for path in bundled.WEIGHTS.iterdir()) < 5e6


def test_bundled_backbone_is_the_development_one(shared_dir: Path) -> None:
    for suffix in (".json", ".safetensors"):
        name = f"vit_micro_patch4_32{suffix}"
        shipped = (bundled.WEIGHTS / name).read_bytes()
        assert shipped == (shared_dir / "backbones" / name).read_bytes()


def test_bundled_backbone_has_learned_something(shared_dir: Path) -> None:
    """Features of the same class are nearer than those of another: far from random."""
    import numpy as np
    from PIL import Image

    folder = shared_dir / "data" / "sign-digits" / "train"
    backbone = load_backbone(MICRO, num_classes=3)
    features = []
    for label in ("0", "3"):
        for path in sorted((folder / label).iterdir())[:12]:
            pixels = np.asarray(Image.open(path).convert("RGB").resize((32, 32)), np.float32)
            features.append(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1))
    with torch.no_grad():
        tokens = backbone.model.forward_features(torch.stack(features))[:, 0]
    tokens = nn.functional.normalize(tokens - tokens.mean(dim=0), dim=1)
    alike = tokens @ tokens.T
    same = (alike[:12, :12].sum() - 12 + alike[12:, 12:].sum() - 12) / (2 * 12 * 11)
    assert same > alike[:12, 12:].mean() + 0.05


def test_a_new_head_is_zero_and_nothing_else_changes() -> None:
    kept, fresh = load_backbone(MICRO), load_backbone(MICRO, num_classes=7)
    assert fresh.num_classes == 7
    assert fresh.notices == ()
    assert torch.equal(outputs(fresh), torch.zeros(2, 7))
    names = [site.name for site in find_sites(kept.model) if site.role not in ("block", "head")]
    assert fingerprint(kept.model, names) == fingerprint(fresh.model, names)


def test_another_bundled_backbone_is_one_more_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((bundled.WEIGHTS / "vit_micro_patch4_32.json").read_text())
    record["args"]["depth"] = 1
    (tmp_path / "vit_nano.json").write_text(json.dumps(record))
    model = bundled.VisionTransformer(**record["args"])
    save_file(model.state_dict(), tmp_path / "vit_nano.safetensors")
    record["architecture"] = "somewhere.Else"
    (tmp_path / "vit_odd.json").write_text(json.dumps(record))
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path)
    assert bundled_names() == ("vitune/vit_nano", "vitune/vit_odd")
    assert len(load_backbone("vitune/vit_nano").model.blocks) == 1
    with pytest.raises(BackboneError, match=r"got architecture 'somewhere.Else'"):
        load_backbone("vitune/vit_odd")


@pytest.mark.parametrize("size", [48, (24, 40)])
def test_other_image_sizes_interpolate_positions(size: int | tuple[int, int]) -> None:
    backbone = load_backbone(MICRO, image_size=size)
    expected = (size, size) if isinstance(size, int) else size
    assert backbone.preprocessing.image_size == expected
    assert outputs(backbone).shape == (2, 200)
    native = load_backbone(MICRO).model.pos_embed
    resized = backbone.model.pos_embed
    assert torch.equal(resized[:, 0], native[:, 0])
    height, width = expected[0] // 4, expected[1] // 4
    patches = resized[0, 1:].reshape(height, width, -1)
    # Neighbours stay neighbours: the corner resembles the native corner more than the far one.
    corner, far = native[0, 1], native[0, -1]
    alike = nn.functional.cosine_similarity
    assert alike(patches[0, 0], corner, dim=0) > alike(patches[0, 0], far, dim=0)


def test_timm_by_name_without_weights() -> None:
    backbone = load_backbone("test_vit.r160_in1k", pretrained=False, num_classes=3, drop_path=0.2)
    assert backbone.source == "random weights"
    assert backbone.preprocessing.image_size == (160, 160)
    assert backbone.preprocessing.crop_pct == 0.95
    assert backbone.preprocessing.crop_mode == "center"
    assert torch.equal(outputs(backbone), torch.zeros(2, 3))
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    clip = load_backbone("vit_tiny_patch16_224", pretrained=False, image_size=32)
    assert clip.preprocessing.mean == (0.5, 0.5, 0.5)
    assert clip.num_classes == 1000


def test_sizes_of_timm_families() -> None:
    for name in ("test_vit", "test_convnext", "test_resnet"):
        backbone = load_backbone(name, pretrained=False, num_classes=3, image_size=(64, 96))
        assert backbone.preprocessing.image_size == (64, 96)
        assert outputs(backbone).shape == (2, 3)


def test_dtype() -> None:
    backbone = load_backbone(MICRO, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}


def test_a_backbone_is_float32_whatever_pytorch_makes_by_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        backbone = load_backbone(MICRO)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}


def test_a_distilled_model_starts_with_two_zero_heads() -> None:
    name = "deit_tiny_distilled_patch16_224"
    backbone = load_backbone(name, pretrained=False, num_classes=3, image_size=32)
    assert backbone.num_classes == 3
    assert torch.equal(outputs(backbone), torch.zeros(2, 3))


def test_a_pretrained_timm_name_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = timm.create_model("test_vit").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: weights)
    kept = load_backbone("test_vit")
    assert torch.equal(kept.model.head.weight, weights["head.weight"])
    assert kept.source.startswith("timm weights of timm/test_vit")
    fresh = load_backbone("test_vit", num_classes=1000)
    assert torch.equal(fresh.model.patch_embed.proj.bias, weights["patch_embed.proj.bias"])
    assert not fresh.model.head.weight.any()


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(BackboneError, match=r"got 'vit_bse_patch16_224'.*Did you mean vit_base_pa"):
        load_backbone("vit_bse_patch16_224")
    with pytest.raises(BackboneError, match=r"Did you mean .*vitune/vit_micro_patch4_32"):
        load_backbone("vit_micro_patch4_32")
    with pytest.raises(BackboneError, match=r"got 'test_vit.in21k', expected one of.*r160_in1k"):
        load_backbone("test_vit.in21k")
    with pytest.raises(BackboneError, match=r"expected a bundled one. Did you mean vitune/vit_m"):
        load_backbone("vitune/vit_mikro")
    with pytest.raises(BackboneError, match=r"got 'torchvision:vit_b16'.*Did you mean vit_b_16"):
        load_backbone("torchvision:vit_b16")
    with pytest.raises(BackboneError, match=r"got weights 'V1', expected those of vit_b_16"):
        load_backbone("torchvision:vit_b_16.V1")


def test_no_network_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = (
        r"^backbone: got '{}' whose weights could not be downloaded .*@FILE.*vitune/vit_[^\n]*$"
    )
    with pytest.raises(BackboneError, match=pattern.format("test_vit.r160_in1k")):
        load_backbone("test_vit.r160_in1k")

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(BackboneError, match=pattern.format("torchvision:resnet18")):
        load_backbone("torchvision:resnet18")


def test_options_out_of_range() -> None:
    with pytest.raises(BackboneError, match=r"num_classes: got 0, expected at least 1"):
        load_backbone(MICRO, num_classes=0)
    with pytest.raises(BackboneError, match=r"image_size: got \(0, 0\), expected a positive"):
        load_backbone(MICRO, image_size=0)
    with pytest.raises(BackboneError, match=r"drop_path: got 1.0, expected a rate in \[0, 1\)"):
        load_backbone(MICRO, drop_path=1.0)


def test_options_the_architecture_does_not_take() -> None:
    with pytest.raises(BackboneError, match=r"backbone dla46_c: got options .*drop_path_rate"):
        load_backbone("dla46_c", pretrained=False, drop_path=0.1)
    with pytest.raises(BackboneError, match=r"backbone xcit_\w+: got options .*divide image dim"):
        load_backbone("xcit_nano_12_p16_224", pretrained=False, image_size=50)
    with pytest.raises(BackboneError, match=r"image_size: got \(8, 8\) for test_vit, expected a"):
        load_backbone("test_vit", pretrained=False, image_size=8)
    with pytest.raises(BackboneError, match=r"torchvision:vit_b_16: got options .*stochastic"):
        load_backbone("torchvision:vit_b_16", pretrained=False, drop_path=0.1)
    with pytest.raises(BackboneError, match=r"image_size: got \(32, 64\) .* expected a square"):
        load_backbone("torchvision:vit_b_16", pretrained=False, image_size=(32, 64))


def test_torchvision_without_weights() -> None:
    backbone = load_backbone("torchvision:resnet18", pretrained=False, num_classes=3, image_size=64)
    assert torch.equal(outputs(backbone), torch.zeros(2, 3))
    assert backbone.preprocessing == Preprocessing(
        image_size=(64, 64),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop_pct=224 / 256,
        crop_mode="center",
    )


def test_torchvision_vit_resamples_published_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ViT_B_16_Weights
    from torchvision.models.vision_transformer import VisionTransformer

    published = VisionTransformer(224, 16, 1, 2, 32, 64)
    state = published.state_dict()
    monkeypatch.setattr(ViT_B_16_Weights, "get_state_dict", lambda *_, **__: state)
    monkeypatch.setattr(
        "vitune.backbones.torchvision_source.zoo.get_model",
        lambda name, weights, image_size, num_classes: VisionTransformer(
            image_size, 16, 1, 2, 32, 64, num_classes=num_classes
        ),
    )
    kept = load_backbone("torchvision:vit_b_16")
    pixels = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(kept.model(pixels), published.eval()(pixels))
    small = load_backbone("torchvision:vit_b_16.IMAGENET1K_V1", image_size=64, num_classes=3)
    assert small.model.encoder.pos_embedding.shape == (1, 17, 32)
    assert torch.equal(outputs(small), torch.zeros(2, 3))


def test_preprocessing_of_a_users_own_model() -> None:
    model = timm.create_model("test_vit", img_size=96)
    assert preprocessing_of(model).image_size == (96, 96)
    assert preprocessing_of(model, (64, 64)).image_size == (64, 64)
    clip = timm.create_model("vit_base_patch16_clip_224.openai", embed_dim=32, num_heads=2, depth=1)
    record = preprocessing_of(clip)
    assert record.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    with pytest.raises(BackboneError, match=r"preprocessing: got VisionTransformer without a conf"):
        preprocessing_of(MODELS["torchvision vit"]())


def test_a_name_is_made_to_hold_in_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved").mkdir()
    assert absolute_backbone("vit_tiny@w.pth") == f"vit_tiny@{tmp_path}/w.pth"
    assert absolute_backbone("vit_tiny@~/w.pth") == f"vit_tiny@{tmp_path}/w.pth"
    assert (
        absolute_backbone("hf:saved") == absolute_backbone("hf:./saved") == f"hf:{tmp_path}/saved"
    )
    for unchanged in (MICRO, "vit_base_patch16_224.augreg_in21k", "hf:google/vit", "torchvision:x"):
        assert absolute_backbone(unchanged) == unchanged
