"""transformers folders: classifiers, bare towers, processors, image sizes and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_zoo import HF, hf_convnext, hf_dual, hf_model, hf_staged
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitune.backbones import find_sites, load_backbone, logits_of, preprocessing_of, token_layout
from vitune.errors import BackboneError
from vitune.preprocessing import Preprocessing

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a model (and a processor's values) as transformers does; give its vitune name."""
    from transformers.utils import logging

    logging.disable_progress_bar()

    def saved(model: nn.Module, processor: dict[str, Any] | None = None) -> str:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        if processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return f"hf:{folder}"

    return saved


def logits(model: nn.Module, size: tuple[int, int] = (32, 32)) -> Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return logits_of(model(torch.randn(2, 3, *size)))


VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 2,
}


def test_a_classifier_is_loaded_as_saved(save: Save) -> None:
    model = hf_model("ViTForImageClassification", "ViTConfig", num_labels=5).eval()
    name = save(model, VIT_PROCESSOR)
    backbone = load_backbone(name)
    assert (backbone.num_classes, backbone.name, backbone.notices) == (5, name, ())
    assert backbone.source.startswith("transformers weights of ")
    assert torch.equal(logits(backbone.model), logits(model))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    assert backbone.preprocessing == Preprocessing((32, 32), mean, std, "bilinear")
    assert preprocessing_of(backbone.model) == backbone.preprocessing


def test_a_new_head_is_zero(save: Save) -> None:
    name = save(hf_model("ViTForImageClassification", "ViTConfig", num_labels=5), VIT_PROCESSOR)
    for num_classes in (3, 5):
        backbone = load_backbone(name, num_classes=num_classes)
        assert torch.equal(logits(backbone.model), torch.zeros(2, num_classes))


def test_a_model_without_head_gives_features(save: Save) -> None:
    model = hf_model("ViTModel", "ViTConfig").eval()
    name = save(model)
    backbone = load_backbone(name)
    assert backbone.num_classes == 0
    pixels = torch.randn(1, 3, 32, 32)
    expected = model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(logits_of(backbone.model(pixels)), expected)
    assert "no image processor" in backbone.notices[0]
    assert load_backbone(name, num_classes=4).num_classes == 4
    random = load_backbone(name, num_classes=4, pretrained=False)
    assert random.source == "random weights"
    assert random.num_classes == 4


@pytest.mark.parametrize(
    ("model", "config", "tower"),
    [
        ("CLIPModel", "CLIPConfig", "vision_model"),
        ("SiglipModel", "SiglipConfig", "vision_model"),
    ],
)
def test_the_vision_tower_of_a_pair(save: Save, model: str, config: str, tower: str) -> None:
    pair = hf_dual(model, config).eval()
    name = save(pair)
    backbone = load_backbone(name, num_classes=3)
    assert torch.equal(logits(backbone.model), torch.zeros(2, 3))
    pixels = torch.randn(2, 3, 32, 32)
    expected = pair.get_submodule(tower)(pixels).pooler_output
    torch.testing.assert_close(load_backbone(name).model(pixels), expected)
    sites = find_sites(backbone.model)
    assert {site.name.split(".")[0] for site in sites} == {"tower", "head"}
    assert sum(site.role == "final_norm" for site in sites) == 1


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("CLIPVisionModel", "CLIPVisionConfig"),
        ("SiglipVisionModel", "SiglipVisionConfig"),
        ("DINOv3ViTModel", "DINOv3ViTConfig"),
    ],
)
def test_a_bare_tower(save: Save, model: str, config: str) -> None:
    tower = hf_model(model, config).eval()
    name = save(tower)
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_backbone(name).model(pixels), tower(pixels).pooler_output)
    backbone = load_backbone(name, num_classes=3, image_size=48)
    assert logits(backbone.model, (48, 48)).shape == (2, 3)
    assert token_layout(backbone.model).grid == (6, 6)
    if model != "DINOv3ViTModel":
        assert preprocessing_of(backbone.model) == backbone.preprocessing


def test_a_masked_autoencoder_becomes_a_plain_vit(save: Save) -> None:
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
        "decoder_intermediate_size": 16,
    }
    model = hf_model("ViTMAEForPreTraining", "ViTMAEConfig", mask_ratio=0.0, **decoder).eval()
    name = save(model)
    assert load_backbone(name).num_classes == 0
    backbone = load_backbone(name, num_classes=3)
    assert type(backbone.model).__name__ == "ViTForImageClassification"
    pixels = torch.randn(1, 3, 32, 32)
    expected = model.vit(pixels).last_hidden_state[:, 0]
    features = backbone.model.vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(backbone.model), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("ViTModel", "ViTConfig"),
        ("DeiTModel", "DeiTConfig"),
        ("Dinov2Model", "Dinov2Config"),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    ],
)
def test_other_image_sizes(save: Save, model: str, config: str) -> None:
    name = save(hf_model(model, config))
    native = load_backbone(name, num_classes=3)
    for size in ((64, 64), (48, 32)):
        backbone = load_backbone(name, num_classes=3, image_size=size)
        assert backbone.preprocessing.image_size == size
        assert token_layout(backbone.model).grid == (size[0] // 8, size[1] // 8)
        if "Dinov2" not in model:
            assert preprocessing_of(backbone.model).image_size == size
        assert logits(backbone.model, size).shape == (2, 3)
        for site in find_sites(native.model):
            if site.role == "fc1":
                old, new = (
                    m.get_submodule(site.name).weight for m in (native.model, backbone.model)
                )
                assert torch.equal(old, new)


def test_resampled_positions_are_transformers_own(save: Save) -> None:
    """A native model told to interpolate agrees closely with the resampled one."""
    name = save(hf_model("ViTForImageClassification", "ViTConfig", num_labels=5).eval())
    native = load_backbone(name).model
    resized = load_backbone(name, image_size=64).model
    with torch.no_grad():
        table = native.vit.embeddings.position_embeddings
        coarse = torch.linspace(-1, 1, table[:, 1:].numel()).reshape(table[:, 1:].shape)
        table[:, 1:] = coarse
    native.save_pretrained(name.removeprefix("hf:"))
    resized = load_backbone(name, image_size=64).model
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        told = logits_of(native(pixels, interpolate_pos_encoding=True))
        plain = logits_of(resized(pixels))
    torch.testing.assert_close(plain, told, rtol=0, atol=0.02 * float(told.abs().max()))


def test_hierarchical_models(save: Save) -> None:
    name = save(hf_staged("SwinForImageClassification", "SwinConfig"))
    backbone = load_backbone(name, num_classes=3, image_size=64, drop_path=0.2)
    assert logits(backbone.model, (64, 64)).shape == (2, 3)
    assert backbone.model.config.drop_path_rate == 0.2
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    convnext = load_backbone(save(hf_convnext(), processor), num_classes=3, image_size=64)
    assert logits(convnext.model, (64, 64)).shape == (2, 3)
    record = convnext.preprocessing
    assert (record.crop_pct, record.crop_mode) == (0.875, "center")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
            {"crop_pct": 0.8, "crop_mode": "center"},
        ),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, {"crop_mode": "center"}),
        (
            {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
            {"crop_pct": 0.8, "crop_mode": "squash"},
        ),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"resample": 1}, {"interpolation": "lanczos"}),
        ({"resample": 4}, {"interpolation": "bicubic"}),
    ],
)
def test_processors(save: Save, values: dict[str, Any], expected: dict[str, Any]) -> None:
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": 32, "width": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": "crop_size" in values,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        **values,
    }
    backbone = load_backbone(save(hf_model("CLIPVisionModel", "CLIPVisionConfig"), processor))
    record = backbone.preprocessing
    assert record.image_size == (32, 32)
    assert {key: getattr(record, key) for key in expected} == expected


def test_the_processors_size_decides_where_the_model_takes_it(save: Save) -> None:
    """DINOv2 is configured for 518 pixels and fed 224: the processor knows."""
    processor = {**VIT_PROCESSOR, "size": {"height": 48, "width": 48}}
    backbone = load_backbone(save(hf_model("Dinov2Model", "Dinov2Config"), processor))
    assert backbone.preprocessing.image_size == (48, 48)
    assert token_layout(backbone.model).grid == (6, 6)


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"expected a folder with config.json"):
        load_backbone(f"hf:{tmp_path}")
    with pytest.raises(BackboneError, match=r"got 'hf:a/b/c', expected hf:ORG/NAME"):
        load_backbone("hf:a/b/c")
    with pytest.raises(BackboneError, match=r"got 'hf:nobody/vit' whose weights could not be dow"):
        load_backbone("hf:nobody/vit")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(BackboneError, match=r"expected a model that transformers knows"):
        load_backbone(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "timm_wrapper", "architecture": "test_vit", "num_classes": 3})
    )
    with pytest.raises(BackboneError, match=rf"expected its timm name: {tmp_path.name} without"):
        load_backbone(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **HF}))
    with pytest.raises(BackboneError, match=r"whose weights could not be downloaded .*OSError"):
        load_backbone(f"hf:{tmp_path}")


def test_damaged_weights(save: Save) -> None:
    name = save(hf_model("ViTModel", "ViTConfig"))
    path = Path(name.removeprefix("hf:")) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match=r"expected weights that transformers can load. It a"):
        load_backbone(name)


def test_models_of_text_are_refused(save: Save) -> None:
    text = hf_model("BertModel", "BertConfig")
    with pytest.raises(BackboneError, match=r"of type 'bert', expected an image classifier or a"):
        load_backbone(save(text), num_classes=3)
    folder = Path(save(text).removeprefix("hf:"))
    (folder / "config.json").write_text(json.dumps({"model_type": "trocr"}))
    with pytest.raises(BackboneError, match=r"of type 'trocr', expected an image classifier or a"):
        load_backbone(f"hf:{folder}", num_classes=3)


def test_options_that_do_not_fit(save: Save) -> None:
    vit = save(hf_model("ViTModel", "ViTConfig"))
    with pytest.raises(BackboneError, match=r"drop_path: got 0.1 .*\(vit\) has no stochastic"):
        load_backbone(vit, drop_path=0.1)
    clip = save(hf_model("CLIPVisionModel", "CLIPVisionConfig"))
    with pytest.raises(BackboneError, match=r"image_size: got \(48, 32\) .* can be built for"):
        load_backbone(clip, image_size=(48, 32))


def test_missing_and_misshapen_tensors_are_listed(save: Save) -> None:
    name = save(hf_model("ViTForImageClassification", "ViTConfig", num_labels=5))
    path = Path(name.removeprefix("hf:")) / "model.safetensors"
    state = load_file(path)
    key = "vit.layernorm.weight"
    assert key in state
    del state[key], state["classifier.weight"]
    state["vit.layernorm.bias"] = torch.zeros(7)
    save_file(state, path, {"format": "pt"})
    with pytest.raises(
        BackboneError,
        match=r"all tensors of ViTForImageClassification. Missing: vit.layernorm.weight; "
        r"wrong shape: vit.layernorm.bias\.$",
    ):
        load_backbone(name, num_classes=3)
